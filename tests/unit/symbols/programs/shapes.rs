// Rust's layouts: enums with data, niches, options, slices, tuples, reordered fields.
#[allow(dead_code)]
pub enum Shape {
    Empty,
    Circle(f64),
    Rect { w: u32, h: u16 },
}

#[allow(dead_code)]
#[repr(u8)]
#[derive(Clone, Copy)]
pub enum Level {
    Low = 1,
    High = 7,
}

#[allow(dead_code)]
pub struct Slot {
    flag: bool,
    id: u64,
    level: Level,
    name: &'static str,
    bytes: &'static [u8],
    maybe: Option<u32>,
    niche: Option<&'static u64>,
    shape: Shape,
    pair: (u16, u64),
    grid: [[u8; 3]; 2],
}

static NUMBER: u64 = 7;

#[inline(never)]
fn see(slot: &Slot) -> u64 {
    slot.id + slot.bytes.len() as u64
}

fn main() {
    let slot = Slot {
        flag: true,
        id: 3,
        level: Level::High,
        name: "x",
        bytes: b"abc",
        maybe: Some(4),
        niche: Some(&NUMBER),
        shape: Shape::Rect { w: 1, h: 2 },
        pair: (1, 2),
        grid: [[1; 3]; 2],
    };
    println!("{}", see(&slot));
}
