//! A count in Zig's wrapper; destroy gives back a reference.
const std = @import("std");

pub const Conn = struct {
    id: u64,
    refs: std.atomic.Value(u32),
    pub noinline fn unref(self: *Conn, list: *?*Conn) void {
        if (self.refs.fetchSub(1, .acq_rel) != 1) return;
        self.id = 0;
        list.* = self;
    }
};

pub fn main() void {
    var conn = Conn{ .id = 1, .refs = std.atomic.Value(u32).init(2) };
    var list: ?*Conn = null;
    conn.unref(&list);
    conn.unref(&list);
    std.mem.doNotOptimizeAway(list);
}
