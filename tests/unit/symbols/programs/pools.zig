// The slot life of http.zig for Zig 0.15 and 0.16: destroyed through several levels of inline functions, by
// defer and errdefer, in a switch and in loops; a second pool of another type. Says its own ground truth.
const std = @import("std");

pub const panic = std.debug.simple_panic; // keeps the standard library's unwinder out: compiles fast

noinline fn note(what: u8, value: u64) void {
    var buffer: [64]u8 = undefined;
    const text = std.fmt.bufPrint(&buffer, "{c} 0x{x}\n", .{ what, value }) catch return;
    _ = std.os.linux.write(1, text.ptr, text.len);
}

const HTTPConn = struct {
    pad: [95]u64,
    _state: u8,

    pub fn getState(self: *const HTTPConn) u8 {
        return @atomicLoad(u8, &self._state, .acquire);
    }
};

fn Conn(comptime T: type) type {
    return struct {
        protocol: union(enum) { http: *HTTPConn, websocket: *T },
        next: ?*@This(),
        id: u32,
    };
}

const Slot = Conn(u32);

fn empty(comptime Pool: type, gpa: std.mem.Allocator) Pool {
    return if (@hasDecl(Pool, "empty")) .empty else .init(gpa);
}

const Loop = struct {
    pool: std.heap.MemoryPool(Slot),
    http_pool: std.heap.MemoryPool(HTTPConn),
    gpa: std.mem.Allocator,
    list: ?*Slot = null,

    fn accept(self: *Loop, id: u32) !*Slot {
        const conn = if (@hasDecl(@TypeOf(self.pool), "empty")) try self.pool.create(self.gpa) else try self.pool.create();
        note('C', @intFromPtr(conn));
        errdefer {
            note('D', @intFromPtr(conn));
            self.pool.destroy(conn);
        }
        if (id % 9 == 8) return error.Refused;
        const http = if (@hasDecl(@TypeOf(self.pool), "empty")) try self.http_pool.create(self.gpa) else try self.http_pool.create();
        http._state = @truncate(id);
        conn.* = .{ .protocol = .{ .http = http }, .next = null, .id = id };
        return conn;
    }

    fn release(self: *Loop, conn: *Slot) void {
        self.http_pool.destroy(conn.protocol.http);
        note('D', @intFromPtr(conn));
        self.pool.destroy(conn);
    }

    inline fn drop(self: *Loop, conn: *Slot) void {
        conn.next = null;
        self.release(conn);
    }

    noinline fn disown(self: *Loop, conn: *Slot) void {
        note('O', @intFromPtr(conn));
        self.drop(conn);
    }

    noinline fn finish(self: *Loop, conn: *Slot, how: u32) void {
        switch (how) {
            0 => self.release(conn),
            1 => self.drop(conn),
            2 => self.disown(conn),
            3 => {
                defer self.release(conn);
                conn.id = 7;
            },
            4 => {
                note('D', @intFromPtr(conn));
                self.pool.destroy(conn);
            },
            else => {
                conn.next = self.list;
                self.list = conn;
            },
        }
    }

    noinline fn sweep(self: *Loop) void {
        while (self.list) |conn| {
            self.list = conn.next;
            self.release(conn);
        }
    }
};

noinline fn dispatch(conn: *Slot) u32 {
    return switch (conn.protocol) {
        .http => |http| blk: {
            note('S', @intFromPtr(http));
            break :blk http.getState();
        },
        .websocket => |ws| ws.*,
    };
}

pub fn main() !void {
    const gpa = std.heap.page_allocator;
    var loop: Loop = .{
        .pool = empty(std.heap.MemoryPool(Slot), gpa),
        .http_pool = empty(std.heap.MemoryPool(HTTPConn), gpa),
        .gpa = gpa,
    };
    var sum: u32 = 0;
    for (0..40) |i| {
        const id: u32 = @truncate(i);
        const conn = loop.accept(id) catch continue;
        sum += dispatch(conn);
        loop.finish(conn, id % 6);
        if (i % 10 == 9) loop.sweep();
    }
    loop.sweep();
    _ = std.os.linux.write(1, "sum \n", 5);
    if (sum == 0) return error.Nothing;
}
