// The worker threads and the ring that feeds them. Knows nothing of what an item is.
const std = @import("std");
const sys = @import("sys.zig");

const Allocator = std.mem.Allocator;

/// Threads that take connections with a complete request from a ring. The loop thread collects a
/// batch and wakes them once.
pub fn ThreadPool(comptime Ctx: type, comptime T: type) type {
    return struct {
        mut: sys.Mutex = .{},
        ring: []T,
        head: usize = 0,
        tail: usize = 0,
        unflushed: u32 = 0,
        word: std.atomic.Value(u32) = .init(0),
        stopped: bool = false,
        threads: [16]std.Thread = undefined,
        threads_len: usize = 0,

        const Self = @This();

        pub fn init(allocator: Allocator, max: usize) !Self {
            return .{ .ring = try allocator.alloc(T, std.math.ceilPowerOfTwoAssert(usize, max + 64)) };
        }

        pub fn start(self: *Self, ctx: Ctx, n: usize) !void {
            for (0..@min(n, self.threads.len)) |i| {
                self.threads[i] = try std.Thread.spawn(.{ .stack_size = 512 * 1024 }, loop, .{ self, ctx, i });
                self.threads_len += 1;
            }
        }

        pub fn stop(self: *Self) void {
            self.mut.lock();
            self.stopped = true;
            self.mut.unlock();
            _ = self.word.fetchAdd(1, .release);
            sys.futexWake(&self.word, std.math.maxInt(i32));
            for (self.threads[0..self.threads_len]) |t| t.join();
        }

        pub fn spawn(self: *Self, item: T) void {
            self.mut.lock();
            defer self.mut.unlock();
            if (self.tail - self.head == self.ring.len) return;
            self.ring[self.tail & (self.ring.len - 1)] = item;
            self.tail += 1;
            self.unflushed += 1;
        }

        pub fn flush(self: *Self) void {
            if (self.unflushed == 0) return;
            const n = self.unflushed;
            self.unflushed = 0;
            _ = self.word.fetchAdd(1, .release);
            sys.futexWake(&self.word, n);
        }

        fn loop(self: *Self, ctx: Ctx, index: usize) void {
            var name: [16]u8 = @splat(0);
            _ = std.fmt.bufPrint(name[0..15], "worker-{d}", .{index}) catch {};
            sys.setThreadName(@ptrCast(&name));
            while (true) {
                const seen = self.word.load(.acquire);
                self.mut.lock();
                if (self.head != self.tail) {
                    const item = self.ring[self.head & (self.ring.len - 1)];
                    self.head += 1;
                    self.mut.unlock();
                    ctx.processData(item);
                    continue;
                }
                const stopped = self.stopped;
                self.mut.unlock();
                if (stopped) return;
                sys.futexWait(&self.word, seen, null);
            }
        }
    };
}
