// Pools of two types with the same method names; slots freed by Drop, in match arms and closures.
use std::io::Write;

pub struct Session { pub next: *mut Session, pub state: u32 }
pub struct Conn { pub next: *mut Conn, pub session: *mut Session, pub fd: i32, pub flags: u32 }

pub trait Linked { fn link(&mut self) -> &mut *mut Self; }
impl Linked for Conn { #[inline(always)] fn link(&mut self) -> &mut *mut Self { &mut self.next } }
impl Linked for Session { #[inline(always)] fn link(&mut self) -> &mut *mut Self { &mut self.next } }

pub struct Pool<T> { free: *mut T, live: i64, limit: i64 }

impl<T: Linked> Pool<T> {
    const fn new(limit: i64) -> Self { Pool { free: std::ptr::null_mut(), live: 0, limit } }
    #[inline]
    fn create(&mut self) -> Option<std::ptr::NonNull<T>> {
        let mut slot = self.free;
        if slot.is_null() {
            if self.live >= self.limit { return None; }
            slot = unsafe { std::alloc::alloc(std::alloc::Layout::new::<T>()) as *mut T };
            if slot.is_null() { return None; }
        } else {
            self.free = unsafe { *(*slot).link() };
        }
        self.live += 1;
        std::ptr::NonNull::new(slot)
    }
    #[inline]
    fn destroy(&mut self, slot: *mut T) {
        unsafe {
            std::ptr::write_bytes(slot as *mut u8, 0xaa, std::mem::size_of::<T>());
            *(*slot).link() = self.free;
        }
        self.free = slot;
        self.live -= 1;
    }
}

#[inline(never)]
fn note(what: char, slot: *const u8, out: &mut Vec<u8>) {
    writeln!(out, "{} {:p}", what, std::hint::black_box(slot)).unwrap();
}

pub struct Server { conns: Pool<Conn>, sessions: Pool<Session>, out: Vec<u8> }

impl Server {
    fn accept(&mut self, fd: i32) -> *mut Conn {
        let conn = match self.conns.create() {
            Some(conn) => conn.as_ptr(),
            None => return std::ptr::null_mut(),
        };
        note('C', conn as *const u8, &mut self.out);
        let session = self.sessions.create().unwrap().as_ptr();
        unsafe {
            session.write(Session { next: std::ptr::null_mut(), state: fd as u32 });
            conn.write(Conn { next: std::ptr::null_mut(), session, fd, flags: fd as u32 % 5 });
        }
        conn
    }
    fn release(&mut self, conn: *mut Conn) {
        unsafe { self.sessions.destroy((*conn).session) };
        note('D', conn as *const u8, &mut self.out);
        self.conns.destroy(conn);
    }
    #[inline(never)]
    fn disown(&mut self, conn: *mut Conn) { self.release(conn) }
    #[inline(never)]
    fn finish(&mut self, conn: *mut Conn, how: i32) {
        match how {
            0 => self.release(conn),
            1 => { unsafe { (*conn).fd = -1 }; self.release(conn) }
            2 => { note('O', conn as *const u8, &mut self.out); self.disown(conn) }
            3 => { let mut end = |c| self.release(c); end(conn) }
            _ => { note('D', conn as *const u8, &mut self.out); self.conns.destroy(conn) }
        }
    }
}

struct Batch<'a> { server: &'a mut Server, conns: Vec<*mut Conn> }
impl Drop for Batch<'_> {
    #[inline(never)]
    fn drop(&mut self) {
        for conn in self.conns.drain(..) {
            if !conn.is_null() { self.server.release(conn) }
        }
    }
}

fn main() {
    let mut server = Server { conns: Pool::new(6), sessions: Pool::new(100), out: Vec::new() };
    for i in 0..40 {
        let conn = server.accept(i);
        server.finish(conn, i % 5);
    }
    for _ in 0..2 {
        let conns = (0..8).map(|i| server.accept(i)).collect();
        drop(Batch { server: &mut server, conns });
    }
    let text = format!("sum {}\n", server.conns.live);
    server.out.extend_from_slice(text.as_bytes());
    std::io::stdout().write_all(&server.out).unwrap();
}
