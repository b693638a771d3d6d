// The shape of http.zig's slot life in one thread, with a second pool of another type whose methods
// have the same names. Prints its own ground truth, as pool.c does.
const std = @import("std");

pub const panic = std.debug.simple_panic; // keeps the standard library's unwinder out: compiles fast

fn say(comptime format: []const u8, value: u64) void {
    var buffer: [64]u8 = undefined;
    const text = std.fmt.bufPrint(&buffer, format, .{value}) catch return;
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

const Loop = struct {
    pool: std.heap.MemoryPool(Slot),
    http_pool: std.heap.MemoryPool(HTTPConn),
    gpa: std.mem.Allocator,

    fn accept(self: *Loop, id: u32) !*Slot {
        const conn = try self.pool.create(self.gpa);
        errdefer self.pool.destroy(conn);
        say("C 0x{x}\n", @intFromPtr(conn));
        const http = try self.http_pool.create(self.gpa);
        http._state = @truncate(id);
        conn.* = .{ .protocol = .{ .http = http }, .next = null, .id = id };
        return conn;
    }

    noinline fn disown(self: *Loop, conn: *Slot) void {
        say("O 0x{x}\n", @intFromPtr(conn));
        self.http_pool.destroy(conn.protocol.http);
        say("D 0x{x}\n", @intFromPtr(conn));
        self.pool.destroy(conn);
    }
};

noinline fn dispatch(conn: *Slot) u32 {
    return switch (conn.protocol) {
        .http => |http| blk: {
            say("S 0x{x}\n", @intFromPtr(http));
            break :blk http.getState();
        },
        .websocket => |ws| ws.*,
    };
}

pub fn main() !void {
    const gpa = std.heap.page_allocator;
    var loop: Loop = .{ .pool = .empty, .http_pool = .empty, .gpa = gpa };
    var kept: [4]?*Slot = @splat(null);
    var sum: u32 = 0;
    for (0..40) |i| {
        const conn = try loop.accept(@truncate(i));
        sum += dispatch(conn);
        const at = i % 4;
        if (kept[at]) |old| {
            if (i % 3 == 0) {
                loop.http_pool.destroy(old.protocol.http);
                say("D 0x{x}\n", @intFromPtr(old));
                loop.pool.destroy(old);
            } else loop.disown(old);
        }
        kept[at] = conn;
    }
    say("sum {d}\n", sum);
}
