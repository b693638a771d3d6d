// Descriptors that keep an epoll registration alive after its slot has gone: the handler's dup, the
// socket of a live slot that a sweep has freed, the connection that lost its slot to an alias. Bounded
// in number and in time. Must not touch a slot.
const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");
const worker = @import("worker.zig");
const Truth = @import("truth.zig").Truth;
const Switches = @import("bugs.zig").Switches;

pub const Orphan = struct {
    kind: enum { free, dup, lost, ghost } = .free,
    fd: sys.fd_t = -1,
    /// Index of the life that made the registration, and its slot: the registration's userdata.
    life: u32 = 0,
    addr: usize = 0,
    http_conn: ?*worker.HTTPConn = null,
    deadline_ns: u64 = 0,
};

pub const Orphans = struct {
    switches: *const Switches,
    truth: *Truth,
    epfd: sys.fd_t,
    http_conn_pool: *worker.HTTPConnPool,
    entries: [512]Orphan = @splat(.{}),
    len: std.atomic.Value(u32) = .init(0),
    mut: sys.Mutex = .{},

    pub fn isEmpty(self: *const Orphans) bool {
        return self.len.load(.monotonic) == 0;
    }

    pub fn add(self: *Orphans, entry: Orphan) bool {
        self.mut.lock();
        defer self.mut.unlock();
        for (&self.entries) |*e| {
            if (e.kind != .free) continue;
            e.* = entry;
            const hold = if (self.switches.dup_hold_ms == 0) 2000 else self.switches.dup_hold_ms;
            e.deadline_ns = sys.now() + hold * std.time.ns_per_ms;
            _ = self.len.fetchAdd(1, .monotonic);
            return true;
        }
        return false;
    }

    fn release(self: *Orphans, e: *Orphan) void {
        e.kind = .free;
        _ = self.len.fetchSub(1, .monotonic);
    }

    // After a stale (or recycled) delivery: end the registration that made it, unless --orphan keep.
    pub fn drain(self: *Orphans, addr: usize) void {
        if (self.switches.orphan_keep or !self.switches.survive) return;
        self.mut.lock();
        defer self.mut.unlock();
        for (&self.entries) |*e| {
            if (e.kind != .free and e.addr == addr and sys.readable(e.fd) and self.truth.isOrphan(e.life)) e.deadline_ns = 0;
        }
    }

    pub fn sweep(self: *Orphans, now: u64) void {
        self.mut.lock();
        defer self.mut.unlock();
        for (&self.entries) |*e| {
            if (e.kind != .free and e.deadline_ns <= now) self.reap(e);
        }
    }

    pub fn reapGhost(self: *Orphans, addr: usize, always: bool) void {
        if (self.isEmpty()) return;
        self.mut.lock();
        defer self.mut.unlock();
        for (&self.entries) |*e| {
            if (e.kind == .ghost and e.addr == addr and (always or sys.readable(e.fd))) self.reap(e);
        }
    }

    pub fn reapDupsOf(self: *Orphans, life: u32) void {
        self.mut.lock();
        defer self.mut.unlock();
        for (&self.entries) |*e| {
            if (e.kind == .dup and e.life == life) self.reap(e);
        }
    }

    fn reap(self: *Orphans, e: *Orphan) void {
        switch (e.kind) {
            .free => return,
            .dup => {
                self.truth.dupClosed(e.life);
                _ = linux.close(e.fd);
            },
            .lost, .ghost => {
                self.truth.removed(e.life, linux.epoll_ctl(self.epfd, linux.EPOLL.CTL_DEL, e.fd, null));
                const seq = self.truth.batchSeq();
                self.truth.closeEnter(e.life);
                self.truth.closeExit(e.life, linux.close(e.fd), seq);
                if (e.http_conn) |h| self.http_conn_pool.release(h);
            },
        }
        self.release(e);
    }

    pub fn hasDup(self: *Orphans, addr: usize) bool {
        if (self.isEmpty()) return false;
        self.mut.lock();
        defer self.mut.unlock();
        for (&self.entries) |*e| {
            if (e.kind == .dup and e.addr == addr) return true;
        }
        return false;
    }
};
