// The switches of the bundled target: which bug is on, and whether the next eligible connection gets it.
// Counters only; what a bug does stands at the place in worker.zig where a correct server does otherwise.
const std = @import("std");

pub const Bug = enum {
    dup_outlives_close,
    close_on_worker,
    parse_error_no_del,
    free_in_batch,
    double_destroy,
    recycled,
    del_after_close,
    double_close,
    drop_unregistered,
    drop_registered,
    stale_sweep,

    pub fn parse(text: []const u8) ?Bug {
        inline for (@typeInfo(Bug).@"enum".fields) |f| {
            if (text.len == f.name.len) {
                for (text, f.name) |a, b| {
                    if (a != b and !(a == '-' and b == '_')) break;
                } else return @enumFromInt(f.value);
            }
        }
        return null;
    }
};

pub const Switches = struct {
    on: std.EnumSet(Bug) = .initEmpty(),
    every: u64 = 1,
    limit: u64 = std.math.maxInt(u64),
    window_us: ?u64 = null,
    survive: bool = false,
    orphan_keep: bool = false,
    dup_hold_ms: u64 = 2000,
    eligible: [count]std.atomic.Value(u64) = @splat(.init(0)),
    fired: [count]std.atomic.Value(u64) = @splat(.init(0)),

    const count = @typeInfo(Bug).@"enum".fields.len;

    pub fn has(self: *const Switches, bug: Bug) bool {
        return self.on.contains(bug);
    }

    /// True for every `every`-th eligible connection, at most `limit` times.
    pub fn fire(self: *Switches, bug: Bug) bool {
        if (!self.on.contains(bug)) return false;
        const i = @intFromEnum(bug);
        const n = self.eligible[i].fetchAdd(1, .monotonic) + 1;
        if (n % self.every != 0) return false;
        if (self.fired[i].fetchAdd(1, .monotonic) >= self.limit) {
            _ = self.fired[i].fetchSub(1, .monotonic);
            return false;
        }
        return true;
    }

    /// The race window of `bug`: --window-us, or what makes the bug show under ordinary traffic.
    pub fn window(self: *const Switches, bug: Bug) u64 {
        return self.window_us orelse switch (bug) {
            .free_in_batch => 1000,
            else => 0,
        };
    }
};
