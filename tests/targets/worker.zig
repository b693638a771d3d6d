// The event loop, its slots and its worker threads. Shaped like http.zig's worker.zig, with the same
// names, because one shipped profile must fit both: Conn is the slot, its address is epoll's userdata,
// it comes from std.heap.MemoryPool and holds its HTTPConn (another pool) behind `protocol`.
// In correct mode every end of a connection is DEL, close, destroy on the loop thread, in that order.
const std = @import("std");
const builtin = @import("builtin");
const linux = std.os.linux;
const sys = @import("sys.zig");
const Truth = @import("truth.zig").Truth;
const Switches = @import("bugs.zig").Switches;
const Orphans = @import("orphans.zig").Orphans;
const ConcurrentList = @import("lists.zig").ConcurrentList;
const ThreadPool = @import("thread_pool.zig").ThreadPool;

const Allocator = std.mem.Allocator;

pub const Config = struct {
    max_conn: usize = 1000,
    workers: usize = 3,
    keepalive_timeout_ms: u64 = 30_000,
    request_timeout_ms: u64 = 30_000,
};

/// Userdata below this are the listener (0), the signal eventfd (1) and the shutdown eventfd (2).
pub const reserved_userdata = 3;

pub fn NonBlocking(comptime S: type, comptime WSH: type) type {
    return struct {
        server: S,
        config: Config,
        switches: *Switches,
        truth: *Truth,
        allocator: Allocator,
        loop: EPoll(WSH),
        listener: sys.fd_t,
        len: usize = 0,
        full: bool = false,
        stopping: bool = false,
        conn_mem_pool: std.heap.MemoryPool(Conn(WSH)),
        http_conn_pool: HTTPConnPool,
        thread_pool: ThreadPool(*Self, *Conn(WSH)),
        request_list: ConcurrentList(Conn(WSH)) = .{},
        active_list: ConcurrentList(Conn(WSH)) = .{},
        handover_list: ConcurrentList(Conn(WSH)) = .{},
        keepalive_list: ConcurrentList(Conn(WSH)) = .{},
        last_sweep_ms: u64 = 0,

        // Bookkeeping of the bugs; none of it is used in correct mode.
        orphans: Orphans,
        pending_add: [64]*Conn(WSH) = undefined,
        pending_len: usize = 0,
        sweep_carry: [64]*Conn(WSH) = undefined,
        sweep_carry_len: usize = 0,
        alias_pending: ?*Conn(WSH) = null,

        const Self = @This();
        const Pool = std.heap.MemoryPool(Conn(WSH));

        pub fn init(self: *Self, allocator: Allocator, server: S, config: Config, switches: *Switches, truth: *Truth, listener: sys.fd_t) !void {
            self.* = .{
                .server = server,
                .config = config,
                .switches = switches,
                .truth = truth,
                .allocator = allocator,
                .listener = listener,
                .loop = try EPoll(WSH).init(),
                .conn_mem_pool = .empty,
                .orphans = undefined,
                .http_conn_pool = try HTTPConnPool.init(allocator, @min(config.max_conn, 64)),
                .thread_pool = try ThreadPool(*Self, *Conn(WSH)).init(allocator, config.max_conn),
            };
            self.orphans = .{ .switches = switches, .truth = truth, .epfd = self.loop.fd, .http_conn_pool = &self.http_conn_pool };
        }

        pub fn stop(self: *Self) void {
            self.loop.stop();
        }

        pub fn run(self: *Self) void {
            sys.setThreadName("loop");
            self.truth.loop_tid = sys.tid();
            self.loop.start() catch return;
            self.loop.monitorAccept(self.listener) catch return;

            var thread_pool = &self.thread_pool;
            while (true) {
                self.sweep(sys.now() / std.time.ns_per_ms);
                if (self.switches.has(.free_in_batch)) sys.sleepUs(self.switches.window(.free_in_batch));

                self.truth.waitEnter();
                var it = self.loop.wait(self.waitTimeout()) catch continue;
                self.truth.waitExit(it.events, reserved_userdata);

                const now = sys.now() / std.time.ns_per_ms;
                var closed_conn = false;
                // Signals free slots. They wait for the end of the batch, so that no delivery of this
                // batch is left to be dispatched on a freed slot.
                var has_signal = false;

                while (it.next()) |event| {
                    switch (event) {
                        .accept => self.accept(now) catch sys.sleepUs(5000),
                        .signal => if (self.switches.has(.free_in_batch)) self.processSignal(&closed_conn) else {
                            has_signal = true;
                        },
                        .recv => |conn| {
                            if (!self.admit(it.index - 1, conn)) continue;
                            switch (conn.protocol) {
                                .http => |http_conn| {
                                    switch (http_conn.getState()) {
                                        .request, .keepalive => {},
                                        // A worker has it, or it is on its way back: not ours to read.
                                        .active, .handover => continue,
                                    }
                                    const done = http_conn.parse() catch |err| {
                                        requestError(http_conn, err);
                                        self.closeOnLoop(conn, self.switches.fire(.parse_error_no_del));
                                        closed_conn = true;
                                        continue;
                                    };
                                    if (!done) {
                                        if (http_conn._state == .keepalive) http_conn.timeout = now + self.config.request_timeout_ms;
                                        self.swapList(conn, .request);
                                        continue;
                                    }
                                    self.swapList(conn, .active);
                                    thread_pool.spawn(conn);
                                },
                                .websocket => |ws| {
                                    // Nothing in this program upgrades a connection.
                                    _ = @atomicRmw(u32, &ws.pings, .Add, 1, .monotonic);
                                },
                            }
                        },
                        .shutdown => {
                            self.shutdown();
                            return;
                        },
                    }
                }

                if (has_signal) self.processSignal(&closed_conn);
                thread_pool.flush();
                if (!self.orphans.isEmpty()) self.orphans.sweep(sys.now());
                if (self.pending_len != 0) self.addPending(false);
                if (self.full and (closed_conn or self.len < self.config.max_conn)) self.enableListener();
            }
        }

        // Asks the side table, never the slot. Without --survive (and in correct mode) it always says yes.
        fn admit(self: *Self, index: usize, conn: *Conn(WSH)) bool {
            if (!self.truth.enabled) return true;
            const d = self.truth.dispatch(index);
            if (d.recycled) self.orphans.drain(@intFromPtr(conn));
            if (d.touch or !self.switches.survive) {
                if (self.switches.survive) self.orphans.reapGhost(@intFromPtr(conn), false);
                return true;
            }
            self.orphans.drain(@intFromPtr(conn));
            return false;
        }

        fn waitTimeout(self: *Self) i32 {
            if (self.pending_len != 0) return 1;
            if (!self.orphans.isEmpty()) return 10;
            return @intCast(@max(5, @min(1000, self.sweepInterval())));
        }

        fn sweepInterval(self: *const Self) u64 {
            return @max(5, @min(1000, @min(self.config.keepalive_timeout_ms, self.config.request_timeout_ms) / 4));
        }

        fn listOf(self: *Self, state: HTTPConn.State) *ConcurrentList(Conn(WSH)) {
            return switch (state) {
                .active => &self.active_list,
                .keepalive => &self.keepalive_list,
                .request => &self.request_list,
                .handover => &self.handover_list,
            };
        }

        fn swapList(self: *Self, conn: *Conn(WSH), new_state: HTTPConn.State) void {
            const http_conn = conn.protocol.http;
            http_conn._mut.lock();
            defer http_conn._mut.unlock();
            self.listOf(http_conn._state).remove(conn);
            http_conn.setState(new_state);
            self.listOf(new_state).insert(conn);
        }

        // Under the lock: a worker sets the state before it has put the connection into the new list, and
        // the loop, which reads the state without the lock, may be here in between.
        fn unlist(self: *Self, conn: *Conn(WSH), http_conn: *HTTPConn) void {
            http_conn._mut.lock();
            defer http_conn._mut.unlock();
            self.listOf(http_conn._state).remove(conn);
        }

        fn accept(self: *Self, now: u64) !void {
            while (true) {
                if (self.len >= self.config.max_conn) {
                    self.full = true;
                    self.loop.pauseAccept(self.listener) catch {};
                    return;
                }
                const rc = linux.accept4(self.listener, null, null, linux.SOCK.NONBLOCK | linux.SOCK.CLOEXEC);
                const socket: sys.fd_t = @intCast(sys.check(rc) catch |err| switch (err) {
                    error.WouldBlock => return,
                    error.Interrupted, error.ConnectionReset => continue,
                    else => return err,
                });

                const conn = try self.createConn();
                const http_conn = try self.http_conn_pool.acquire();
                http_conn.reset(socket, now + self.config.request_timeout_ms);
                self.len += 1;
                conn.* = .{
                    .next = null,
                    .prev = null,
                    .protocol = .{ .http = http_conn },
                    .life = self.truth.created(@intFromPtr(conn), socket),
                };
                self.request_list.insert(conn);

                const fail = self.switches.fire(.double_destroy);
                if (!fail and self.postponeAdd(conn)) continue;
                self.register(conn, fail) catch {
                    self.closeSocket(conn);
                    self.disown(conn);
                    // The bug: an outer error path does not know that disown() has destroyed the slot.
                    if (fail) self.destroyAgain(conn, true);
                    continue;
                };
            }
        }

        fn createConn(self: *Self) !*Conn(WSH) {
            if (self.alias_pending) |x| if (self.switches.survive) self.linkForAlias(x);
            return self.conn_mem_pool.create(self.allocator);
        }

        fn register(self: *Self, conn: *Conn(WSH), fail: bool) !void {
            const rc = self.loop.monitorRead(conn, fail);
            self.truth.registered(conn.life, rc);
            _ = try sys.check(rc);
            @atomicStore(bool, &conn.registered, true, .release);
        }

        // Ends a connection on the loop thread: DEL, close, destroy. `no_del` leaves the DEL to close().
        fn closeOnLoop(self: *Self, conn: *Conn(WSH), no_del: bool) void {
            const http_conn = conn.protocol.http;
            if (http_conn.closed_on_worker) {
                if (self.switches.fire(.double_close)) self.closeSocket(conn);
            } else if (no_del or http_conn.no_del) {
                self.closeSocket(conn);
            } else if (self.switches.fire(.del_after_close)) {
                self.closeSocket(conn);
                sys.sleepUs(self.switches.window(.del_after_close));
                self.removeAfterClose(conn);
            } else {
                self.unregister(conn);
                self.closeSocket(conn);
                if (self.switches.fire(.double_close)) {
                    sys.sleepUs(self.switches.window(.double_close));
                    self.closeSocket(conn);
                }
            }
            self.disown(conn);
        }

        fn unregister(self: *Self, conn: *Conn(WSH)) void {
            if (!conn.registered) return;
            conn.registered = false;
            self.truth.removed(conn.life, self.loop.remove(conn.getSocket()));
        }

        // Every second time the number is taken again in between (as a busy server would by accident),
        // so that the removal fails with ENOENT instead of EBADF.
        fn removeAfterClose(self: *Self, conn: *Conn(WSH)) void {
            const fd = conn.getSocket();
            const reuse = conn.life % 2 == 1 and !self.switches.has(.dup_outlives_close) and !self.switches.has(.recycled) and
                linux.errno(linux.fcntl(fd, linux.F.GETFD, 0)) == .BADF;
            if (reuse) _ = linux.dup3(self.loop.close_fd, fd, @bitCast(linux.O{ .CLOEXEC = true }));
            self.truth.removed(conn.life, self.loop.remove(fd));
            if (reuse) _ = linux.close(fd);
        }

        fn closeSocket(self: *Self, conn: *Conn(WSH)) void {
            const life = conn.life;
            const fd = conn.getSocket();
            const seq = self.truth.batchSeq();
            self.truth.closeEnter(life);
            const rc = linux.close(fd);
            self.truth.closeExit(life, rc, seq);
        }

        fn processSignal(self: *Self, closed: *bool) void {
            const hl = &self.handover_list;
            // Workers only append and only this thread removes, so the head stays the head.
            while (hl.first()) |conn| {
                closed.* = true;
                const http_conn = conn.protocol.http;
                if (!http_conn.closed_on_worker) {
                    if (self.switches.fire(.drop_registered)) {
                        self.forget(conn);
                        continue;
                    }
                    if (self.switches.fire(.drop_unregistered)) {
                        self.unregister(conn);
                        self.closeSocket(conn);
                        self.forget(conn);
                        continue;
                    }
                }
                self.closeOnLoop(conn, false);
            }
        }

        // The bug of both drop switches: out of every list, and nobody will ever destroy the slot.
        fn forget(self: *Self, conn: *Conn(WSH)) void {
            self.handover_list.remove(conn);
            self.len -= 1;
            self.truth.dropped(conn.life);
        }

        /// Entry point of the worker threads: one complete request waits in the HTTPConn's buffer.
        pub fn processData(self: *Self, conn: *Conn(WSH)) void {
            switch (conn.protocol) {
                .http => |http_conn| self.processHTTPData(conn, http_conn),
                .websocket => {},
            }
        }

        fn processHTTPData(self: *Self, conn: *Conn(WSH), http_conn: *HTTPConn) void {
            while (true) {
                http_conn.request_count += 1;
                self.server.handleRequest(self, conn, http_conn);
                if (http_conn.handover == .keepalive and http_conn.nextRequest()) continue;
                break;
            }
            if (http_conn.handover == .keepalive) {
                http_conn.timeout = sys.now() / std.time.ns_per_ms + self.config.keepalive_timeout_ms;
                self.swapList(conn, .keepalive);
                return;
            }
            if (self.switches.fire(.close_on_worker)) {
                // The bug: the number is free and the registration goes by side effect, here, while the
                // loop thread may be inside epoll_wait; the slot goes later, over there.
                http_conn.closed_on_worker = true;
                self.closeSocket(conn);
                sys.sleepUs(self.switches.window(.close_on_worker));
                if (self.switches.dup_hold_ms == 0) self.orphans.reapDupsOf(conn.life);
            }
            self.swapList(conn, .handover);
            self.loop.signal();
        }

        fn disown(self: *Self, conn: *Conn(WSH)) void {
            const http_conn = conn.protocol.http;
            self.unlist(conn, http_conn);
            self.len -= 1;
            if (self.switches.survive) self.orphans.reapGhost(@intFromPtr(conn), true);
            if (self.pending_len != 0) self.cancelPending(conn);
            self.http_conn_pool.release(http_conn);
            self.truth.destroyed(@intFromPtr(conn));
            self.conn_mem_pool.destroy(conn);
        }

        fn enableListener(self: *Self) void {
            self.full = false;
            self.loop.monitorAccept(self.listener) catch {};
        }

        // -- timeouts --------------------------------------------------------------------------------

        fn sweep(self: *Self, now: u64) void {
            if (now - self.last_sweep_ms < self.sweepInterval()) return;
            self.last_sweep_ms = now;
            if (self.sweep_carry_len != 0) self.sweepStaleLinks();
            const before = self.len;
            self.sweepList(&self.request_list, now);
            self.sweepList(&self.keepalive_list, now);
            if (self.full and self.len < before) self.enableListener();
        }

        // Lists are ordered by deadline. Only this thread takes connections out of these two lists.
        fn sweepList(self: *Self, list: *ConcurrentList(Conn(WSH)), now: u64) void {
            while (list.first()) |conn| {
                if (conn.protocol.http.timeout > now) return;
                // The bug: the sweep's own links keep the node although it is destroyed now.
                if (self.sweep_carry_len < self.sweep_carry.len and self.switches.fire(.stale_sweep)) {
                    self.sweep_carry[self.sweep_carry_len] = conn;
                    self.sweep_carry_len += 1;
                }
                self.closeOnLoop(conn, false);
            }
        }

        // The second pass over links to nodes that the first pass has destroyed. A node may be free by
        // now (destroyed twice) or may carry somebody else's connection (destroyed while registered).
        fn sweepStaleLinks(self: *Self) void {
            sys.sleepUs(self.switches.window(.stale_sweep));
            var kept: usize = 0;
            for (self.sweep_carry[0..self.sweep_carry_len]) |conn| {
                if (!self.switches.survive) {
                    self.disown(conn);
                } else if (!self.truth.isLive(@intFromPtr(conn))) {
                    self.destroyAgain(conn, false);
                } else if (!self.freeForeign(conn)) {
                    self.sweep_carry[kept] = conn;
                    kept += 1;
                }
            }
            self.sweep_carry_len = kept;
        }

        // --survive: destroys a live slot as the stale sweep does, but remembers its socket, so that the
        // program can go on. False when a worker has the connection: try at the next sweep.
        fn freeForeign(self: *Self, conn: *Conn(WSH)) bool {
            const http_conn = conn.protocol.http;
            switch (http_conn.getStateUnprobed()) {
                .active, .handover => return false,
                .request, .keepalive => {},
            }
            if (!self.orphans.add(.{ .kind = .lost, .fd = http_conn.socket, .life = conn.life, .addr = @intFromPtr(conn), .http_conn = http_conn })) return false;
            self.unlist(conn, http_conn);
            self.len -= 1;
            self.orphans.reapGhost(@intFromPtr(conn), true);
            if (self.pending_len != 0) self.cancelPending(conn);
            self.truth.destroyed(@intFromPtr(conn));
            self.conn_mem_pool.destroy(conn);
            return true;
        }

        // -- double destroy --------------------------------------------------------------------------

        // The pool's free list then links the node to itself (or into a cycle) and hands it out twice.
        // --survive lets the pool do it, puts the list right again, and plays the consequence (`alias`:
        // the next connection gets the slot although another lives in it) at a moment that is safe.
        fn destroyAgain(self: *Self, conn: *Conn(WSH), alias: bool) void {
            self.truth.destroyed(@intFromPtr(conn));
            if (!self.switches.survive) {
                self.conn_mem_pool.destroy(conn);
                return;
            }
            const node: *std.SinglyLinkedList.Node = @ptrCast(@alignCast(conn));
            const first = self.conn_mem_pool.free_list.first;
            const link = node.next;
            self.conn_mem_pool.destroy(conn);
            // Undone below: without this an optimizer leaves the whole push out, and there is nothing to see.
            asm volatile ("" ::: .{ .memory = true });
            node.next = link;
            self.conn_mem_pool.free_list.first = first;
            if (alias) self.alias_pending = conn;
        }

        // Makes the pool's next create() return `conn`, which is in use. Its present connection becomes a
        // ghost: registered with this userdata, without a slot of its own.
        fn linkForAlias(self: *Self, conn: *Conn(WSH)) void {
            if (!self.truth.isLive(@intFromPtr(conn))) return;
            const http_conn = conn.protocol.http;
            switch (http_conn.getStateUnprobed()) {
                .active, .handover => return,
                .request, .keepalive => {},
            }
            if (!conn.registered) return;
            if (!self.orphans.add(.{ .kind = .ghost, .fd = http_conn.socket, .life = conn.life, .addr = @intFromPtr(conn), .http_conn = http_conn })) return;
            self.unlist(conn, http_conn);
            self.len -= 1;
            self.alias_pending = null;
            const node: *std.SinglyLinkedList.Node = @ptrCast(@alignCast(conn));
            node.next = self.conn_mem_pool.free_list.first;
            self.conn_mem_pool.free_list.first = node;
        }

        // -- registrations that outlive their slot ---------------------------------------------------

        /// Called by a handler on a worker thread: keeps a second descriptor of the connection's socket.
        pub fn keepDup(self: *Self, conn: *Conn(WSH), http_conn: *HTTPConn) bool {
            // Not registered yet (see postponeAdd): its second descriptor would keep nothing alive.
            for (0..40) |_| {
                if (@atomicLoad(bool, &conn.registered, .acquire)) break;
                sys.sleepUs(500);
            } else return false;
            const fd = secondDescriptor(http_conn.socket, conn.life % 3) catch return false;
            self.truth.dupped(conn.life, fd);
            if (self.orphans.add(.{ .kind = .dup, .fd = fd, .life = conn.life, .addr = @intFromPtr(conn) })) return true;
            self.truth.dupClosed(conn.life);
            _ = linux.close(fd);
            return false;
        }

        // The three ways to a second descriptor, in turn.
        fn secondDescriptor(socket: sys.fd_t, way: u32) !sys.fd_t {
            switch (way) {
                0 => return @intCast(try sys.check(linux.dup(socket))),
                1 => return @intCast(try sys.check(linux.fcntl(socket, linux.F.DUPFD_CLOEXEC, 0))),
                else => {
                    const placeholder = try sys.eventfd();
                    errdefer _ = linux.close(placeholder);
                    return @intCast(try sys.check(linux.dup3(socket, placeholder, @bitCast(linux.O{ .CLOEXEC = true }))));
                },
            }
        }

        // --bug recycled with a window: the new life of a slot that still has an old registration is
        // registered late, so that for a while only the old registration can speak.
        fn postponeAdd(self: *Self, conn: *Conn(WSH)) bool {
            if (!self.switches.has(.recycled) or self.switches.window(.recycled) == 0) return false;
            if (self.pending_len == self.pending_add.len) return false;
            if (!self.orphans.hasDup(@intFromPtr(conn))) return false;
            conn.protocol.http.add_at_ns = sys.now() + self.switches.window(.recycled) * std.time.ns_per_us;
            self.pending_add[self.pending_len] = conn;
            self.pending_len += 1;
            return true;
        }

        fn addPending(self: *Self, all: bool) void {
            const now = sys.now();
            var kept: usize = 0;
            for (self.pending_add[0..self.pending_len]) |conn| {
                if (!all and conn.protocol.http.add_at_ns > now) {
                    self.pending_add[kept] = conn;
                    kept += 1;
                } else self.register(conn, false) catch {};
            }
            self.pending_len = kept;
        }

        fn cancelPending(self: *Self, conn: *Conn(WSH)) void {
            for (self.pending_add[0..self.pending_len], 0..) |c, i| {
                if (c != conn) continue;
                self.pending_len -= 1;
                self.pending_add[i] = self.pending_add[self.pending_len];
                return;
            }
        }

        // -- the end ---------------------------------------------------------------------------------

        fn shutdown(self: *Self) void {
            self.thread_pool.stop();
            self.loop.pauseAccept(self.listener) catch {};
            var closed = false;
            self.processSignal(&closed);
            for ([_]*ConcurrentList(Conn(WSH)){ &self.request_list, &self.keepalive_list, &self.active_list }) |list| {
                while (list.first()) |conn| {
                    self.unregister(conn);
                    if (!conn.protocol.http.closed_on_worker) self.closeSocket(conn);
                    self.disown(conn);
                }
            }
            self.orphans.sweep(std.math.maxInt(u64));
        }
    };
}

fn EPoll(comptime WSH: type) type {
    return struct {
        fd: sys.fd_t,
        close_fd: sys.fd_t,
        event_fd: sys.fd_t,
        event_list: [128]linux.epoll_event,

        const Self = @This();

        fn init() !Self {
            return .{
                .close_fd = try sys.eventfd(),
                .event_fd = try sys.eventfd(),
                .fd = @intCast(try sys.check(linux.epoll_create1(linux.EPOLL.CLOEXEC))),
                .event_list = undefined,
            };
        }

        fn start(self: *Self) !void {
            _ = try sys.check(self.ctl(linux.EPOLL.CTL_ADD, self.close_fd, linux.EPOLL.IN, 2));
            // Edge-triggered and never read: each write to the eventfd is one edge.
            _ = try sys.check(self.ctl(linux.EPOLL.CTL_ADD, self.event_fd, linux.EPOLL.IN | linux.EPOLL.ET, 1));
        }

        fn stop(self: *const Self) void {
            sys.writeAll(self.close_fd, &std.mem.toBytes(@as(u64, 1))) catch {};
        }

        fn signal(self: *const Self) void {
            sys.writeAll(self.event_fd, &std.mem.toBytes(@as(u64, 1))) catch {};
        }

        fn ctl(self: *const Self, op: u32, fd: sys.fd_t, events: u32, userdata: usize) usize {
            var event: linux.epoll_event = .{ .events = events, .data = .{ .ptr = userdata } };
            return linux.epoll_ctl(self.fd, op, fd, &event);
        }

        fn monitorAccept(self: *const Self, fd: sys.fd_t) !void {
            _ = try sys.check(self.ctl(linux.EPOLL.CTL_ADD, fd, linux.EPOLL.IN | linux.EPOLL.EXCLUSIVE, 0));
        }

        fn pauseAccept(self: *const Self, fd: sys.fd_t) !void {
            _ = try sys.check(linux.epoll_ctl(self.fd, linux.EPOLL.CTL_DEL, fd, null));
        }

        // `fail` asks for a mask that the kernel refuses (EINVAL), in place of ENOSPC from max_user_watches.
        fn monitorRead(self: *const Self, conn: *Conn(WSH), fail: bool) usize {
            const events: u32 = linux.EPOLL.IN | linux.EPOLL.RDHUP;
            const bad: u32 = linux.EPOLL.EXCLUSIVE | linux.EPOLL.ONESHOT;
            return self.ctl(linux.EPOLL.CTL_ADD, conn.getSocket(), if (fail) events | bad else events, @intFromPtr(conn));
        }

        fn remove(self: *const Self, fd: sys.fd_t) usize {
            return linux.epoll_ctl(self.fd, linux.EPOLL.CTL_DEL, fd, null);
        }

        fn wait(self: *Self, timeout_ms: i32) !Iterator {
            const n = try sys.check(linux.epoll_wait(self.fd, &self.event_list, self.event_list.len, timeout_ms));
            return .{ .events = self.event_list[0..n] };
        }

        const Iterator = struct {
            events: []const linux.epoll_event,
            index: usize = 0,

            fn next(self: *Iterator) ?Event(WSH) {
                if (self.index == self.events.len) return null;
                const userdata = self.events[self.index].data.ptr;
                self.index += 1;
                return switch (userdata) {
                    0 => .accept,
                    1 => .signal,
                    2 => .shutdown,
                    else => .{ .recv = @ptrFromInt(userdata) },
                };
            }
        };
    };
}

fn Event(comptime WSH: type) type {
    return union(enum) {
        accept: void,
        signal: void,
        shutdown: void,
        recv: *Conn(WSH),
    };
}

// A second pool of another type with methods of the same names, as in http.zig: a resolver that
// matched on `destroy` alone would probe this one too.
pub const HTTPConnPool = struct {
    allocator: Allocator,
    conns: []*HTTPConn,
    available: usize,
    http_mem_pool: std.heap.MemoryPool(HTTPConn),
    mut: sys.Mutex = .{},

    fn init(allocator: Allocator, min: usize) !HTTPConnPool {
        var pool: std.heap.MemoryPool(HTTPConn) = .empty;
        const conns = try allocator.alloc(*HTTPConn, min);
        for (conns) |*c| c.* = try pool.create(allocator);
        return .{ .allocator = allocator, .conns = conns, .available = min, .http_mem_pool = pool };
    }

    fn acquire(self: *HTTPConnPool) !*HTTPConn {
        self.mut.lock();
        defer self.mut.unlock();
        if (self.available == 0) return self.http_mem_pool.create(self.allocator);
        self.available -= 1;
        return self.conns[self.available];
    }

    pub fn release(self: *HTTPConnPool, conn: *HTTPConn) void {
        self.mut.lock();
        defer self.mut.unlock();
        if (self.available == self.conns.len) {
            self.http_mem_pool.destroy(conn);
            return;
        }
        self.conns[self.available] = conn;
        self.available += 1;
    }
};

// What a freed slot's tag says decides how a stale dispatch dies. The pool's destroy() fills the slot
// with 0xaa in safe modes and then writes the free-list link over the union's pointer.
//  - LLVM (ReleaseSafe) keeps the two-valued tag in one bit: 0xaa has bit 0 clear, so it reads `.http`,
//    and getState() faults at null + 0x2f8. That is the crash of the report.
//  - ReleaseFast and ReleaseSmall do not fill: the tag is still `.http`.
//  - Zig's own x86-64 backend (Debug) compares the whole byte and would panic with "switch on corrupt
//    value" first. There, and only there, the tag's values are chosen so that 0xaa is `.http`.
const ConnTag = if (builtin.mode == .Debug) enum(u8) { http = 0xaa, websocket = 0x55 } else enum { http, websocket };

pub fn Conn(comptime WSH: type) type {
    return struct {
        protocol: union(ConnTag) {
            http: *HTTPConn,
            websocket: *WSConn(WSH),
        },
        next: ?*Conn(WSH),
        prev: ?*Conn(WSH),
        /// Index of this life in the truth table.
        life: u32,
        registered: bool = false,

        const Self = @This();

        comptime {
            if (@offsetOf(Self, "protocol") != 0) @compileError("protocol must alias the pool's free-list link");
        }

        pub fn getSocket(self: *const Self) sys.fd_t {
            return switch (self.protocol) {
                .http => |hc| hc.socket,
                .websocket => |ws| ws.socket,
            };
        }
    };
}

pub fn WSConn(comptime WSH: type) type {
    return struct {
        handler: ?*WSH = null,
        socket: sys.fd_t = -1,
        pings: u32 = 0,
    };
}

pub const Header = struct { name: []const u8, value: []const u8 };

pub const HTTPConn = struct {
    pub const State = enum { active, request, handover, keepalive };
    pub const Handover = enum { unknown, close, keepalive };

    // Fields of alignment 8 and 4 come first in memory, whatever their order here (Zig sorts by
    // alignment), then those of alignment 1 in this order: `_state` is the first of them.
    headers: [21]Header,
    request_count: u64,
    timeout: u64,
    add_at_ns: u64,
    target: []const u8,
    head_len: usize,
    buf_len: usize,
    headers_len: usize,
    reserved: [2]u64,
    socket: sys.fd_t,
    _mut: sys.Mutex,

    // Read by the loop thread while a worker may write it: use getState().
    _state: State,
    handover: Handover,
    no_del: bool,
    closed_on_worker: bool,
    buf: [4096]u8,

    comptime {
        if (@offsetOf(HTTPConn, "_state") != 0x2f8)
            @compileError(std.fmt.comptimePrint("_state is at 0x{x}, not at 0x2f8", .{@offsetOf(HTTPConn, "_state")}));
    }

    fn reset(self: *HTTPConn, socket: sys.fd_t, timeout: u64) void {
        self.request_count = 0;
        self.timeout = timeout;
        self.add_at_ns = 0;
        self.target = "";
        self.head_len = 0;
        self.buf_len = 0;
        self.headers_len = 0;
        self.socket = socket;
        self._mut = .{};
        self._state = .request;
        self.handover = .unknown;
        self.no_del = false;
        self.closed_on_worker = false;
    }

    pub fn getState(self: *const HTTPConn) State {
        return @atomicLoad(State, &self._state, .acquire);
    }

    // For the bookkeeping of --survive: the dispatch alone calls getState(), so that a probe there
    // counts dispatches and nothing else.
    fn getStateUnprobed(self: *const HTTPConn) State {
        return @atomicLoad(State, &self._state, .acquire);
    }

    pub fn setState(self: *HTTPConn, state: State) void {
        @atomicStore(State, &self._state, state, .release);
    }

    pub const ParseError = error{ EndOfStream, HeaderTooBig, BadRequest } || sys.Error;

    /// Reads what is there. True when the buffer holds a complete request head.
    fn parse(self: *HTTPConn) ParseError!bool {
        if (self.buf_len == self.buf.len) return error.HeaderTooBig;
        const n = sys.read(self.socket, self.buf[self.buf_len..]) catch |err| switch (err) {
            error.WouldBlock, error.Interrupted => return false,
            else => return err,
        };
        if (n == 0) return error.EndOfStream;
        self.buf_len += n;
        return self.parseBuffered();
    }

    fn parseBuffered(self: *HTTPConn) ParseError!bool {
        const data = self.buf[0..self.buf_len];
        const end = std.mem.indexOf(u8, data, "\r\n\r\n") orelse {
            if (data.len >= 4 and !std.mem.startsWith(u8, data, "GET ") and !std.mem.startsWith(u8, data, "POST") and !std.mem.startsWith(u8, data, "HEAD")) return error.BadRequest;
            return false;
        };
        self.head_len = end + 4;
        self.headers_len = 0;
        var lines = std.mem.splitSequence(u8, data[0..end], "\r\n");
        const line = lines.next() orelse return error.BadRequest;
        var parts = std.mem.splitScalar(u8, line, ' ');
        const method = parts.next() orelse return error.BadRequest;
        if (!std.mem.eql(u8, method, "GET") and !std.mem.eql(u8, method, "HEAD")) return error.BadRequest;
        self.target = parts.next() orelse return error.BadRequest;
        const version = parts.next() orelse return error.BadRequest;
        if (!std.mem.eql(u8, version, "HTTP/1.1") or self.target.len == 0 or self.target[0] != '/') return error.BadRequest;
        while (lines.next()) |text| {
            if (self.headers_len == self.headers.len) return error.HeaderTooBig;
            const colon = std.mem.indexOfScalar(u8, text, ':') orelse return error.BadRequest;
            self.headers[self.headers_len] = .{ .name = text[0..colon], .value = std.mem.trim(u8, text[colon + 1 ..], " ") };
            self.headers_len += 1;
        }
        return true;
    }

    /// Drops the request that was answered. True when a pipelined one is complete already.
    fn nextRequest(self: *HTTPConn) bool {
        const rest = self.buf_len - self.head_len;
        std.mem.copyForwards(u8, self.buf[0..rest], self.buf[self.head_len..self.buf_len]);
        self.buf_len = rest;
        self.head_len = 0;
        if (rest == 0) return false;
        return self.parseBuffered() catch {
            self.handover = .close;
            return false;
        };
    }

    pub fn header(self: *const HTTPConn, name: []const u8) ?[]const u8 {
        for (self.headers[0..self.headers_len]) |h| {
            if (std.ascii.eqlIgnoreCase(h.name, name)) return h.value;
        }
        return null;
    }
};

fn requestError(conn: *HTTPConn, err: HTTPConn.ParseError) void {
    const text = switch (err) {
        error.BadRequest => "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        error.HeaderTooBig => "HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        else => return,
    };
    sys.sendAll(conn.socket, text, 0) catch {};
}
