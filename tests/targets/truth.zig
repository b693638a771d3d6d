// The ground truth of the bundled target: what really happened to every (slot, generation), as seen
// from inside. A side table that is never recycled. It decides nothing about the server's behaviour
// except in --survive, where the dispatch asks it before touching a slot. It must not touch a slot.
const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");

/// Lives the table can hold (virtual memory only, pages come as lives are born). What comes later is
/// counted in `overflow` and written in the summary.
const max_lives = 1 << 21;
/// Distinct slot addresses; a power of two, far above any sensible --max-conn.
const max_slots = 1 << 15;
pub const none: u32 = std.math.maxInt(u32);

/// One life of one slot address. Times are CLOCK_MONOTONIC ns, 0 = never. `tid` is the thread that did it.
pub const Life = struct {
    addr: usize = 0,
    generation: u32 = 0,
    /// Generation whose registration produced the stale deliveries (0: none seen or not known).
    stale_reg_generation: u32 = 0,
    fd: i32 = -1,
    dup_fd: i32 = -1,
    create_ns: u64 = 0,
    create_tid: u32 = 0,
    add_tid: u32 = 0,
    add_ns: u64 = 0,
    add_errno: i32 = 0,
    del_errno: i32 = 0,
    del_ns: u64 = 0,
    del_tid: u32 = 0,
    close_tid: u32 = 0,
    close_enter_ns: u64 = 0,
    close_exit_ns: u64 = 0,
    close_errno: i32 = 0,
    closes: u32 = 0,
    dup_ns: u64 = 0,
    dup_close_ns: u64 = 0,
    dup_tid: u32 = 0,
    destroy_tid: u32 = 0,
    destroy_ns: u64 = 0,
    last_destroy_ns: u64 = 0,
    destroys: u32 = 0,
    bad_closes: u32 = 0,
    deliveries: u64 = 0,
    first_delivery_ns: u64 = 0,
    last_delivery_ns: u64 = 0,
    dispatches: u64 = 0,
    stale_deliveries: u64 = 0,
    first_stale_ns: u64 = 0,
    last_stale_ns: u64 = 0,
    stale_dispatches: u64 = 0,
    recycled_deliveries: u64 = 0,
    recycled_ambiguous: u64 = 0,
    after_close: u32 = 0,
    after_close_possible: u32 = 0,
    failed_removals: u32 = 0,
    /// The epoll registration made in this life still exists, as far as the kernel is concerned.
    registered: bool = false,
    closed: bool = false,
    aliased: bool = false,
    dropped: bool = false,
    freed_while_registered: bool = false,
    freed_in_batch: bool = false,
    /// Closed on a worker thread while registered.
    close_on_worker: bool = false,
    /// The close itself ended the registration: no DEL, no other descriptor. On which thread.
    implicit_on_worker: bool = false,
    implicit_on_loop: bool = false,
    description_outlives_close: bool = false,
    close_in_batch: bool = false,
    close_in_batch_possible: bool = false,
    /// The pool handed the slot out again while this life was not over.
    superseded: bool = false,
    /// Another connection's second close() hit this one's descriptor.
    closed_by_other: bool = false,

    fn wrong(l: *const Life) bool {
        return l.stale_deliveries != 0 or l.stale_dispatches != 0 or l.recycled_deliveries != 0 or
            l.recycled_ambiguous != 0 or l.after_close != 0 or l.after_close_possible != 0 or
            l.close_in_batch or l.close_in_batch_possible or l.failed_removals != 0 or l.superseded or l.closed_by_other or
            l.description_outlives_close or l.implicit_on_worker or
            l.bad_closes != 0 or l.destroys > 1 or l.aliased or l.dropped or l.freed_while_registered or
            l.freed_in_batch or l.close_on_worker or l.implicit_on_loop or l.dup_ns != 0;
    }
};

/// What one delivery of the open batch was when epoll_wait returned.
pub const Delivery = struct {
    life: u32 = none,
    /// Destroyed before the wait returned: a stale delivery.
    stale: bool = false,
    /// The registration of an older generation produced it, for sure.
    recycled: bool = false,
    dispatched: bool = false,
};

pub const Detail = enum { all, bugs, ended };

const Slot = struct { addr: usize = 0, life: u32 = none };

pub const Truth = struct {
    enabled: bool = false,
    fd: i32 = -1,
    detail: Detail = .bugs,
    /// The program goes on after stale deliveries, so the file is completed at exit and not before.
    survive: bool = false,
    loop_tid: u32 = 0,
    mutex: sys.Mutex = .{},
    lives: []Life = &.{},
    len: u32 = 0,
    slots: []Slot = &.{},
    /// Lives whose registration outlived their destroy, newest last. Bounded; see `orphan_overflow`.
    orphans: [2048]u32 = undefined,
    orphans_len: u32 = 0,
    orphan_overflow: u64 = 0,
    overflow: u64 = 0,
    batch: [128]Delivery = @splat(.{}),
    batch_len: u32 = 0,
    batch_seq: u64 = 0,
    batch_open: bool = false,
    wait_enter_ns: u64 = 0,
    partial_writes: u32 = 0,
    /// Latest life per descriptor number.
    owners: [1 << 15]u32 = @splat(none),
    failed_setups: u64 = 0,
    stale_deliveries: u64 = 0,
    stale_dispatches: u64 = 0,
    wrong_closes: u64 = 0,
    wrong_removals: u64 = 0,
    batches: u64 = 0,
    deliveries: u64 = 0,

    pub fn init(self: *Truth, path: ?[:0]const u8, detail: Detail, survive: bool) !void {
        if (path == null and !survive) return;
        self.detail = detail;
        self.survive = survive;
        self.lives = try reserve(Life, max_lives);
        self.slots = try reserve(Slot, max_slots);
        if (path) |p| {
            self.fd = @intCast(try sys.check(linux.open(p.ptr, .{ .ACCMODE = .WRONLY, .CREAT = true, .TRUNC = true, .CLOEXEC = true }, 0o600)));
        }
        self.enabled = true;
    }

    fn reserve(comptime T: type, n: usize) ![]T {
        const rc = try sys.check(linux.mmap(null, n * @sizeOf(T), .{ .READ = true, .WRITE = true }, .{ .TYPE = .PRIVATE, .ANONYMOUS = true, .NORESERVE = true }, -1, 0));
        const p: [*]T = @ptrFromInt(rc);
        return p[0..n];
    }

    // A zero page is an empty Slot with life 0, so emptiness is told by addr alone.
    fn slotOf(self: *Truth, addr: usize) *Slot {
        var i = (addr *% 0x9e3779b97f4a7c15) >> 49;
        while (self.slots[i].addr != 0 and self.slots[i].addr != addr) i = (i + 1) & (max_slots - 1);
        return &self.slots[i];
    }

    fn latest(self: *Truth, addr: usize) u32 {
        const s = self.slotOf(addr);
        return if (s.addr == 0) none else s.life;
    }

    fn isFree(l: *const Life) bool {
        return l.destroys != 0;
    }

    /// The slot came out of the pool: generation + 1. Returns the life's index, a handle for later calls.
    pub fn created(self: *Truth, addr: usize, fd: i32) u32 {
        if (!self.enabled) return none;
        const t = sys.now();
        self.mutex.lock();
        defer self.mutex.unlock();
        const s = self.slotOf(addr);
        const prev: ?*Life = if (s.addr == 0) null else &self.lives[s.life];
        if (self.len == self.lives.len) {
            self.overflow += 1;
            return none;
        }
        const index = self.len;
        self.len += 1;
        if (prev) |p| p.superseded = !isFree(p);
        self.lives[index] = .{
            .addr = addr,
            .generation = if (prev) |p| p.generation + 1 else 1,
            .fd = fd,
            .create_ns = t,
            .create_tid = sys.tid(),
            .aliased = if (prev) |p| !isFree(p) else false,
        };
        s.* = .{ .addr = addr, .life = index };
        if (fd >= 0 and fd < self.owners.len) self.owners[@intCast(fd)] = index;
        return index;
    }

    pub fn registered(self: *Truth, life: u32, rc: usize) void {
        const l = self.get(life) orelse return;
        const t = sys.now();
        self.mutex.lock();
        defer self.mutex.unlock();
        l.add_ns = t;
        l.add_tid = sys.tid();
        l.add_errno = sys.errnoOf(rc);
        l.registered = rc == 0;
        if (rc != 0) self.failed_setups += 1;
    }

    pub fn removed(self: *Truth, life: u32, rc: usize) void {
        const l = self.get(life) orelse return;
        const t = sys.now();
        self.mutex.lock();
        defer self.mutex.unlock();
        l.del_ns = t;
        l.del_tid = sys.tid();
        l.del_errno = sys.errnoOf(rc);
        if (rc != 0) {
            l.failed_removals += 1;
        } else if (l.closed and !dupOpen(l)) {
            // The number is somebody else's by now, and so was the registration.
            self.wrong_removals += 1;
            if (self.ownerOf(l.fd)) |victim| self.lives[victim].registered = false;
        } else {
            l.registered = false;
            self.dropOrphan(life);
        }
    }

    pub fn closeEnter(self: *Truth, life: u32) void {
        const l = self.get(life) orelse return;
        const t = sys.now();
        const me = sys.tid();
        self.mutex.lock();
        defer self.mutex.unlock();
        l.closes += 1;
        if (l.closes == 1) {
            l.close_enter_ns = t;
            l.close_tid = me;
            l.close_on_worker = me != self.loop_tid and l.registered;
            if (me != self.loop_tid and self.mayBeInOpenBatch(life, t)) l.close_in_batch_possible = true;
        }
    }

    /// `batchSeq()` from before the call tells whether one batch was open over the whole close.
    pub fn closeExit(self: *Truth, life: u32, rc: usize, seq_before: u64) void {
        const l = self.get(life) orelse return;
        const t = sys.now();
        self.mutex.lock();
        defer self.mutex.unlock();
        if (rc != 0) {
            l.bad_closes += 1;
            return;
        }
        if (l.closed) {
            self.wrong_closes += 1;
            const victim = self.ownerOf(l.fd) orelse return;
            const v = &self.lives[victim];
            v.closed = true;
            v.closed_by_other = true;
            if (!dupOpen(v)) {
                v.registered = false;
                self.dropOrphan(victim);
            }
            return;
        }
        l.close_exit_ns = t;
        l.close_errno = sys.errnoOf(rc);
        l.closed = true;
        // close() ends the registration only with the last descriptor of the description: epoll(7), Q6.
        const on_loop = sys.tid() == self.loop_tid;
        if (l.registered and dupOpen(l)) {
            l.description_outlives_close = true;
        } else if (l.registered) {
            l.registered = false;
            if (on_loop) l.implicit_on_loop = true else l.implicit_on_worker = true;
        }
        if (!on_loop and self.inOpenBatch(life)) {
            if (self.batch_seq == seq_before) l.close_in_batch = true;
            l.close_in_batch_possible = true;
        }
    }

    // The connection that has this descriptor number now.
    fn ownerOf(self: *Truth, fd: i32) ?u32 {
        if (fd < 0 or fd >= self.owners.len) return null;
        const index = self.owners[@intCast(fd)];
        if (index == none or self.lives[index].closed) return null;
        return index;
    }

    pub fn batchSeq(self: *const Truth) u64 {
        return @atomicLoad(u64, &self.batch_seq, .acquire);
    }

    fn dupOpen(l: *const Life) bool {
        return l.dup_ns != 0 and l.dup_close_ns == 0;
    }

    pub fn dupped(self: *Truth, life: u32, fd: i32) void {
        const l = self.get(life) orelse return;
        const t = sys.now();
        self.mutex.lock();
        defer self.mutex.unlock();
        l.dup_ns = t;
        l.dup_fd = fd;
        l.dup_close_ns = 0;
        l.dup_tid = sys.tid();
    }

    /// The last extra descriptor of the description is about to be closed.
    pub fn dupClosed(self: *Truth, life: u32) void {
        const l = self.get(life) orelse return;
        const t = sys.now();
        self.mutex.lock();
        defer self.mutex.unlock();
        l.dup_close_ns = t;
        if (l.closed) {
            l.registered = false;
            self.dropOrphan(life);
        }
    }

    fn dropOrphan(self: *Truth, life: u32) void {
        for (self.orphans[0..self.orphans_len], 0..) |o, i| {
            if (o != life) continue;
            self.orphans_len -= 1;
            self.orphans[i] = self.orphans[self.orphans_len];
            return;
        }
    }

    /// The slot of `addr` is about to go back to the pool.
    pub fn destroyed(self: *Truth, addr: usize) void {
        if (!self.enabled) return;
        const t = sys.now();
        self.mutex.lock();
        defer self.mutex.unlock();
        const index = self.latest(addr);
        if (index == none) return;
        const l = &self.lives[index];
        // Without --survive there may be no other moment to write it.
        defer if (self.detail == .ended) {
            self.writeLife(l);
            self.flush();
        };
        l.destroys += 1;
        l.last_destroy_ns = t;
        if (l.destroys > 1) {
            self.writePartial();
            return;
        }
        l.destroy_ns = t;
        l.destroy_tid = sys.tid();
        if (l.registered) {
            l.freed_while_registered = true;
            if (self.orphans_len < self.orphans.len) {
                self.orphans[self.orphans_len] = index;
                self.orphans_len += 1;
            } else self.orphan_overflow += 1;
        }
        if (self.batch_open) for (self.batch[0..self.batch_len]) |d| {
            if (d.life == index and !d.dispatched) l.freed_in_batch = true;
        };
    }

    /// The server forgot the slot for good: no destroy will come.
    pub fn dropped(self: *Truth, life: u32) void {
        const l = self.get(life) orelse return;
        l.dropped = true;
    }

    fn inOpenBatch(self: *Truth, life: u32) bool {
        if (!self.batch_open) return false;
        for (self.batch[0..self.batch_len]) |d| if (d.life == life) return true;
        return false;
    }

    // The kernel closes a batch when the next wait begins. Between waitEnter() and that call the loop may be
    // preempted, for as long as a busy machine does that.
    fn mayBeInOpenBatch(self: *Truth, life: u32, t: u64) bool {
        if (!self.batch_open and t -% self.wait_enter_ns > 200 * std.time.ns_per_ms) return false;
        for (self.batch[0..self.batch_len]) |d| if (d.life == life) return true;
        return false;
    }

    /// What the batch named stays readable until the next one.
    pub fn waitEnter(self: *Truth) void {
        if (!self.enabled) return;
        const t = sys.now();
        self.mutex.lock();
        defer self.mutex.unlock();
        self.batch_open = false;
        self.wait_enter_ns = t;
        @atomicStore(u64, &self.batch_seq, self.batch_seq + 1, .release);
    }

    /// Right after epoll_wait returned: judges the whole batch before any of it is dispatched.
    pub fn waitExit(self: *Truth, events: []const linux.epoll_event, reserved: usize) void {
        if (!self.enabled) return;
        const t = sys.now();
        self.mutex.lock();
        defer self.mutex.unlock();
        self.batches += 1;
        self.batch_open = true;
        self.batch_len = @intCast(events.len);
        for (events, 0..) |ev, i| {
            self.batch[i] = .{};
            const addr: usize = ev.data.ptr;
            if (addr < reserved) continue;
            self.deliveries += 1;
            const index = self.latest(addr);
            if (index == none) continue;
            const l = &self.lives[index];
            self.batch[i].life = index;
            if (isFree(l)) {
                self.batch[i].stale = true;
                self.noteStale(index, t);
                continue;
            }
            if (l.deliveries == 0) l.first_delivery_ns = t;
            l.deliveries += 1;
            l.last_delivery_ns = t;
            if (l.closes != 0 and l.destroys == 0) {
                // Certain only when the close was over before the wait began (its description lives on);
                // otherwise the two calls overlapped somewhere and only the kernel knows the order.
                if (l.close_exit_ns != 0 and l.close_exit_ns < self.wait_enter_ns) {
                    l.after_close += 1;
                }
                l.after_close_possible += 1;
                if (l.close_tid != self.loop_tid) l.close_in_batch_possible = true;
            }
            if (self.orphans_len > 0) self.noteRecycled(index, events[0 .. i + 1], events, i);
        }
    }

    fn noteStale(self: *Truth, index: u32, t: u64) void {
        const l = &self.lives[index];
        self.stale_deliveries += 1;
        if (l.stale_deliveries == 0) {
            l.first_stale_ns = t;
            var regs: u32 = 0;
            for (self.orphans[0..self.orphans_len]) |o| {
                if (self.lives[o].addr == l.addr) {
                    regs += 1;
                    l.stale_reg_generation = self.lives[o].generation;
                }
            }
            if (regs > 1) l.stale_reg_generation = 0;
            self.print("{{\"event\":\"stale_delivery\",\"slot\":{d},\"generation\":{d},\"registration_generation\":{d},\"ns\":{d},\"tid\":{d},\"destroyed_ns\":{d}}}\n", .{ l.addr, l.generation, l.stale_reg_generation, t, sys.tid(), l.destroy_ns });
        }
        l.stale_deliveries += 1;
        l.last_stale_ns = t;
    }

    // Userdata alone cannot tell which of two registrations spoke. From inside it can often be told:
    // only the loop thread reads sockets, so a socket that is not readable now was not reported before,
    // and two reports in one batch are one of each.
    fn noteRecycled(self: *Truth, index: u32, seen: []const linux.epoll_event, all: []const linux.epoll_event, i: usize) void {
        const l = &self.lives[index];
        var orphans_ready: u32 = 0;
        var orphans_here: u32 = 0;
        for (self.orphans[0..self.orphans_len]) |o| {
            const reg = &self.lives[o];
            if (reg.addr != l.addr or o == index) continue;
            orphans_here += 1;
            const fd = if (dupOpen(reg)) reg.dup_fd else if (!reg.closed) reg.fd else -1;
            if (fd >= 0 and sys.readable(fd)) orphans_ready += 1;
        }
        if (orphans_here == 0 or orphans_ready == 0) return;
        var nth: u32 = 0;
        for (seen) |ev| nth += @intFromBool(ev.data.ptr == l.addr);
        var total: u32 = 0;
        for (all) |ev| total += @intFromBool(ev.data.ptr == l.addr);
        const own = l.registered and sys.readable(l.fd);
        if (!own or nth > 1) {
            l.recycled_deliveries += 1;
            self.batch[i].recycled = true;
        } else if (total == 1) {
            l.recycled_ambiguous += 1;
        }
    }

    /// What delivery `i` of the open batch is by now. `touch` is false when the slot it was meant for is gone.
    pub fn dispatch(self: *Truth, i: usize) struct { touch: bool, recycled: bool, life: u32 } {
        if (!self.enabled) return .{ .touch = true, .recycled = false, .life = none };
        self.mutex.lock();
        defer self.mutex.unlock();
        const d = &self.batch[i];
        d.dispatched = true;
        if (d.life == none) return .{ .touch = true, .recycled = false, .life = none };
        const l = &self.lives[d.life];
        const gone = isFree(l) or self.latest(l.addr) != d.life;
        if (gone) {
            l.stale_dispatches += 1;
            self.stale_dispatches += 1;
            self.writePartial();
        } else l.dispatches += 1;
        return .{ .touch = !gone, .recycled = d.recycled, .life = d.life };
    }

    pub fn isLive(self: *Truth, addr: usize) bool {
        if (!self.enabled) return true;
        self.mutex.lock();
        defer self.mutex.unlock();
        const index = self.latest(addr);
        return index != none and !isFree(&self.lives[index]);
    }

    /// The slot of this life is gone (destroyed, or handed out again).
    pub fn isOrphan(self: *Truth, life: u32) bool {
        const l = self.get(life) orelse return true;
        self.mutex.lock();
        defer self.mutex.unlock();
        return isFree(l) or self.latest(l.addr) != life;
    }

    fn get(self: *Truth, life: u32) ?*Life {
        // A slot read after it was freed can hold any number here (0xaaaaaaaa in safe modes).
        return if (!self.enabled or life >= self.len) null else &self.lives[life];
    }

    // -- output ----------------------------------------------------------------------------------------

    var out_buf: [1 << 16]u8 = undefined;
    var out_len: usize = 0;

    fn flush(self: *Truth) void {
        if (self.fd >= 0) sys.writeAll(self.fd, out_buf[0..out_len]) catch {};
        out_len = 0;
    }

    fn put(self: *Truth, comptime fmt: []const u8, args: anytype) void {
        if (self.fd < 0) return;
        if (out_buf.len - out_len < 4096) self.flush();
        const s = std.fmt.bufPrint(out_buf[out_len..], fmt, args) catch return;
        out_len += s.len;
    }

    fn print(self: *Truth, comptime fmt: []const u8, args: anytype) void {
        self.put(fmt, args);
        self.flush();
    }

    // Without --survive the program is about to die of what it has just recorded.
    fn writePartial(self: *Truth) void {
        if (self.survive or self.partial_writes >= 3) return;
        self.partial_writes += 1;
        self.writeSummary(true);
    }

    fn writeLife(self: *Truth, l: *const Life) void {
        self.put("{{\"life\":true,\"slot\":{d},\"generation\":{d},\"fd\":{d}", .{ l.addr, l.generation, l.fd });
        inline for (@typeInfo(Life).@"struct".fields) |f| {
            if (comptime std.mem.eql(u8, f.name, "addr") or std.mem.eql(u8, f.name, "generation") or std.mem.eql(u8, f.name, "fd")) continue;
            const v = @field(l, f.name);
            if (f.type == bool) {
                if (v) self.put(",\"{s}\":true", .{f.name});
            } else if (v != (if (comptime std.mem.eql(u8, f.name, "dup_fd")) -1 else 0)) {
                self.put(",\"{s}\":{d}", .{ f.name, v });
            }
        }
        self.put("}}\n", .{});
    }

    fn writeSummary(self: *Truth, partial: bool) void {
        var sum: struct {
            freed_while_registered: u64 = 0,
            freed_in_batch: u64 = 0,
            failed_removals: u64 = 0,
            bad_closes: u64 = 0,
            double_destroys: u64 = 0,
            aliased: u64 = 0,
            leaked_unregistered: u64 = 0,
            leaked_registered: u64 = 0,
            close_on_worker: u64 = 0,
            implicit_removal: u64 = 0,
            implicit_on_loop: u64 = 0,
            delivery_after_close: u64 = 0,
            delivery_after_close_possible: u64 = 0,
            close_in_open_batch: u64 = 0,
            close_in_open_batch_possible: u64 = 0,
            recycled_deliveries: u64 = 0,
            recycled_ambiguous: u64 = 0,
            description_outlives_close: u64 = 0,
            destroyed: u64 = 0,
            live_at_exit: u64 = 0,
        } = .{};
        for (self.lives[0..self.len]) |*l| {
            if (l.wrong() or self.detail != .bugs) self.writeLife(l);
            sum.freed_while_registered += @intFromBool(l.freed_while_registered);
            sum.freed_in_batch += @intFromBool(l.freed_in_batch);
            sum.failed_removals += l.failed_removals;
            sum.bad_closes += l.bad_closes;
            sum.double_destroys += if (l.destroys > 1) l.destroys - 1 else 0;
            sum.aliased += @intFromBool(l.aliased);
            sum.leaked_unregistered += @intFromBool(l.dropped and l.closed);
            sum.leaked_registered += @intFromBool(l.dropped and !l.closed);
            sum.close_on_worker += @intFromBool(l.close_on_worker);
            sum.implicit_removal += @intFromBool(l.implicit_on_worker and l.destroys != 0);
            sum.implicit_on_loop += @intFromBool(l.implicit_on_loop);
            sum.delivery_after_close += l.after_close;
            sum.delivery_after_close_possible += l.after_close_possible;
            sum.close_in_open_batch += @intFromBool(l.close_in_batch);
            sum.close_in_open_batch_possible += @intFromBool(l.close_in_batch_possible);
            sum.recycled_deliveries += l.recycled_deliveries;
            sum.recycled_ambiguous += l.recycled_ambiguous;
            sum.description_outlives_close += @intFromBool(l.description_outlives_close);
            sum.destroyed += @intFromBool(l.destroys != 0);
            sum.live_at_exit += @intFromBool(l.destroys == 0 and !l.superseded);
        }
        self.put("{{\"summary\":true,\"partial\":{},\"connections\":{d},\"overflow\":{d},\"batches\":{d},\"deliveries\":{d},\"failed_setups\":{d},\"stale_deliveries\":{d},\"stale_dispatches\":{d},\"wrong_closes\":{d},\"wrong_removals\":{d},\"orphan_overflow\":{d}", .{ partial, self.len, self.overflow, self.batches, self.deliveries, self.failed_setups, self.stale_deliveries, self.stale_dispatches, self.wrong_closes, self.wrong_removals, self.orphan_overflow });
        inline for (@typeInfo(@TypeOf(sum)).@"struct".fields) |f| self.put(",\"{s}\":{d}", .{ f.name, @field(sum, f.name) });
        self.put(",\"leaked\":{d},\"loop_tid\":{d},\"ns\":{d},\"stale_slots\":[", .{ sum.leaked_unregistered + sum.leaked_registered, self.loop_tid, sys.now() });
        var first = true;
        for (self.lives[0..self.len]) |*l| {
            if (l.stale_deliveries == 0) continue;
            self.put("{s}[{d},{d},{d},{d}]", .{ if (first) "" else ",", l.addr, l.generation, l.stale_deliveries, l.stale_reg_generation });
            first = false;
        }
        self.put("]}}\n", .{});
        self.flush();
    }

    /// Completes the file. Only after all other threads have stopped.
    pub fn finish(self: *Truth) void {
        if (!self.enabled) return;
        self.mutex.lock();
        defer self.mutex.unlock();
        self.writeSummary(false);
    }
};
