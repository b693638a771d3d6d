// Raw Linux system calls, a futex lock and clocks for the bundled target and its load generator.
// Owns no state. Nothing here knows about connections, bugs or the truth table.
const std = @import("std");
const linux = std.os.linux;

pub const fd_t = i32;
// Linux POLLRDHUP on x86-64 and most others; std 0.16 lacks the name.
const POLLRDHUP = 0x2000;

pub const Error = error{
    WouldBlock,
    Interrupted,
    BadFd,
    NoEntry,
    Exists,
    Invalid,
    NoFds,
    ConnectionReset,
    BrokenPipe,
    AddressInUse,
    Unexpected,
};

/// Maps a raw return value to a value or one of `Error`.
pub fn check(rc: usize) Error!usize {
    return switch (linux.errno(rc)) {
        .SUCCESS => rc,
        .AGAIN, .INPROGRESS => error.WouldBlock,
        .INTR => error.Interrupted,
        .BADF => error.BadFd,
        .NOENT => error.NoEntry,
        .EXIST => error.Exists,
        .INVAL => error.Invalid,
        .MFILE, .NFILE => error.NoFds,
        .CONNRESET => error.ConnectionReset,
        .PIPE => error.BrokenPipe,
        .ADDRINUSE, .ADDRNOTAVAIL => error.AddressInUse,
        else => error.Unexpected,
    };
}

/// errno of a raw return value as a positive number, 0 when the call succeeded.
pub fn errnoOf(rc: usize) i32 {
    return @intCast(@intFromEnum(linux.errno(rc)));
}

/// CLOCK_MONOTONIC, the clock of bpf_ktime_get_ns() too, so truth and tracer share a time line.
pub fn now() u64 {
    var ts: linux.timespec = undefined;
    _ = linux.clock_gettime(.MONOTONIC, &ts);
    return @as(u64, @intCast(ts.sec)) * std.time.ns_per_s + @as(u64, @intCast(ts.nsec));
}

pub fn sleepUs(us: u64) void {
    if (us == 0) return;
    var ts: linux.timespec = .{
        .sec = @intCast(us / std.time.us_per_s),
        .nsec = @intCast((us % std.time.us_per_s) * 1000),
    };
    while (linux.errno(linux.nanosleep(&ts, &ts)) == .INTR) {}
}

threadlocal var cached_tid: u32 = 0;

pub fn tid() u32 {
    if (cached_tid == 0) cached_tid = @intCast(linux.gettid());
    return cached_tid;
}

pub fn setThreadName(name: [*:0]const u8) void {
    _ = linux.prctl(@intFromEnum(linux.PR.SET_NAME), @intFromPtr(name), 0, 0, 0);
}

pub fn read(fd: fd_t, buf: []u8) Error!usize {
    return check(linux.read(fd, buf.ptr, buf.len));
}

pub fn writeAll(fd: fd_t, data: []const u8) Error!void {
    var i: usize = 0;
    while (i < data.len) {
        i += check(linux.write(fd, data.ptr + i, data.len - i)) catch |err| switch (err) {
            error.Interrupted => continue,
            else => return err,
        };
    }
}

/// A send that never raises SIGPIPE; waits for room when the socket buffer is full, at most
/// `timeout_ms`, so that a client that does not read cannot hold a worker for ever.
pub fn sendAll(fd: fd_t, data: []const u8, timeout_ms: i32) Error!void {
    var i: usize = 0;
    while (i < data.len) {
        i += check(linux.sendto(fd, data.ptr + i, data.len - i, linux.MSG.NOSIGNAL, null, 0)) catch |err| switch (err) {
            error.Interrupted => continue,
            error.WouldBlock => {
                var pfd = [1]linux.pollfd{.{ .fd = fd, .events = linux.POLL.OUT, .revents = 0 }};
                if (linux.poll(&pfd, 1, timeout_ms) != 1) return error.WouldBlock;
                continue;
            },
            else => return err,
        };
    }
}

/// True when a level-triggered IN|RDHUP registration of this description would be reported now.
pub fn readable(fd: fd_t) bool {
    var pfd = [1]linux.pollfd{.{ .fd = fd, .events = linux.POLL.IN | POLLRDHUP, .revents = 0 }};
    const n = linux.poll(&pfd, 1, 0);
    return n == 1 and pfd[0].revents & linux.POLL.NVAL == 0;
}

pub fn eventfd() Error!fd_t {
    return @intCast(try check(linux.eventfd(0, linux.EFD.CLOEXEC | linux.EFD.NONBLOCK)));
}

pub fn raiseFdLimit() void {
    var lim: linux.rlimit = undefined;
    if (linux.errno(linux.getrlimit(.NOFILE, &lim)) != .SUCCESS) return;
    lim.cur = lim.max;
    _ = linux.setrlimit(.NOFILE, &lim);
}

/// Three-state futex lock (0 free, 1 held, 2 held with waiters). std's own mutex moved behind
/// std.Io in 0.16, which this program does without, so that its threads and calls stay its own.
pub const Mutex = struct {
    state: std.atomic.Value(u32) = .init(0),

    pub fn lock(self: *Mutex) void {
        if (self.state.cmpxchgStrong(0, 1, .acquire, .monotonic) == null) return;
        while (self.state.swap(2, .acquire) != 0) futexWait(&self.state, 2, null);
    }

    pub fn unlock(self: *Mutex) void {
        if (self.state.swap(0, .release) == 2) futexWake(&self.state, 1);
    }
};

pub fn futexWait(word: *const std.atomic.Value(u32), expected: u32, timeout: ?*const linux.timespec) void {
    _ = linux.futex_4arg(word, .{ .cmd = .WAIT, .private = true }, expected, timeout);
}

pub fn futexWake(word: *const std.atomic.Value(u32), count: u32) void {
    _ = linux.futex_3arg(word, .{ .cmd = .WAKE, .private = true }, count);
}

/// Listens on 127.0.0.1:`port` (0: the kernel picks) and returns the descriptor and the port.
pub fn listenLoopback(port: u16) Error!struct { fd_t, u16 } {
    const fd: fd_t = @intCast(try check(linux.socket(linux.AF.INET, linux.SOCK.STREAM | linux.SOCK.NONBLOCK | linux.SOCK.CLOEXEC, 0)));
    errdefer _ = linux.close(fd);
    const one: c_int = 1;
    _ = try check(linux.setsockopt(fd, linux.SOL.SOCKET, linux.SO.REUSEADDR, @ptrCast(&one), @sizeOf(c_int)));
    var addr: linux.sockaddr.in = .{ .port = std.mem.nativeToBig(u16, port), .addr = std.mem.nativeToBig(u32, 0x7f000001) };
    _ = try check(linux.bind(fd, @ptrCast(&addr), @sizeOf(linux.sockaddr.in)));
    _ = try check(linux.listen(fd, 4096));
    var len: linux.socklen_t = @sizeOf(linux.sockaddr.in);
    _ = try check(linux.getsockname(fd, @ptrCast(&addr), &len));
    return .{ fd, std.mem.bigToNative(u16, addr.port) };
}

/// Starts a non-blocking connect to 127.0.0.1:`port`.
pub fn connectLoopback(port: u16) Error!fd_t {
    const fd: fd_t = @intCast(try check(linux.socket(linux.AF.INET, linux.SOCK.STREAM | linux.SOCK.NONBLOCK | linux.SOCK.CLOEXEC, 0)));
    errdefer _ = linux.close(fd);
    const addr: linux.sockaddr.in = .{ .port = std.mem.nativeToBig(u16, port), .addr = std.mem.nativeToBig(u32, 0x7f000001) };
    _ = check(linux.connect(fd, &addr, @sizeOf(linux.sockaddr.in))) catch |err| switch (err) {
        error.WouldBlock => {},
        else => return err,
    };
    return fd;
}
