// Zig's layouts: slices, optionals of both kinds, tagged and plain unions, packed and extern structs.
const std = @import("std");

pub const Colour = enum(u8) { red = 1, green = 2 };

pub const Payload = union(enum) {
    none,
    number: u64,
    text: []const u8,
};

pub const Flags = packed struct(u16) {
    a: u3,
    b: i5,
    c: bool,
    rest: u7,
};

pub const Wire = extern struct {
    kind: u8,
    length: u32,
    tail: [3]u16,
};

pub const Slot = struct {
    id: u64,
    name: []const u8,
    maybe: ?u32,
    next: ?*Slot,
    colour: Colour,
    payload: Payload,
    flags: Flags,
    wire: Wire,
    fall: anyerror!u16,
    live: bool,
};

var slot: Slot = .{
    .id = 3,
    .name = "x",
    .maybe = 4,
    .next = null,
    .colour = .green,
    .payload = .{ .number = 9 },
    .flags = .{ .a = 1, .b = -2, .c = true, .rest = 5 },
    .wire = .{ .kind = 1, .length = 2, .tail = .{ 1, 2, 3 } },
    .fall = 7,
    .live = true,
};

noinline fn see(s: *Slot) u64 {
    std.mem.doNotOptimizeAway(s);
    return s.id + s.name.len;
}

pub fn main() void {
    std.process.exit(@truncate(see(&slot)));
}
