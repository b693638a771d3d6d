// A count in Rust's wrappers; destroy gives back a reference.
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Conn {
    pub id: u64,
    pub refs: AtomicUsize,
}

impl Conn {
    #[inline(never)]
    pub fn unref(conn: *mut Conn) {
        unsafe {
            if (*conn).refs.fetch_sub(1, Ordering::AcqRel) != 1 {
                return;
            }
            (*conn).id = 0;
            println!("freed");
        }
    }
}

fn main() {
    let conn = Box::into_raw(Box::new(Conn { id: 1, refs: AtomicUsize::new(2) }));
    Conn::unref(conn);
    Conn::unref(conn);
}
