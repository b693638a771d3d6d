// Load for the bundled target: one process, one epoll loop, loopback only, bounded in connections and
// in time. Each connection plays one script; a mix is a choice of scripts. It knows the target's routes
// and nothing of its inside. Prints one JSON line.
const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");

/// What one connection does, from connect to close.
const Script = enum {
    /// One request with Connection: close; the server closes.
    close,
    /// One request without; the client closes.
    churn,
    /// `--requests` requests one after another, then the client closes.
    keepalive,
    /// Three requests in one write, the last with Connection: close.
    pipeline,
    /// Half a request, a pause, then the client closes.
    partial,
    /// Half a request, a pause, the other half.
    split,
    /// A broken request line: 400 and close.
    malformed,
    /// A request, the answer, then shutdown(SHUT_WR): the server sees RDHUP.
    half_close,
    /// A request, the answer, then a reset instead of a close.
    rst,
    /// /slow, with Connection: close.
    slow,
    /// Connection: close, and the client shuts down its side at once: RDHUP while a worker has it.
    eager,
    /// /slow with Connection: close, and more bytes as soon as the answer came: they arrive after the
    /// worker's signal, when the loop has not seen this socket ready for a while.
    poke,
    /// /dup, the answer, a pause, then bytes that only the surviving registration can report.
    dup,
    /// /dup, the answer, another connection that takes the slot and idles, then the bytes.
    recycle,
    /// /dup?keep=1, the answer, a broken request line (close without DEL in --bug parse-error-no-del),
    /// a pause, then more bytes.
    dup_malformed,
    /// Connection: close, and further bytes from the first moment on, so that the socket stays readable.
    flood,
    /// Connects and says nothing until the server closes, or --idle-ms passed.
    idle,
    /// A request, a long pause, a request, ... --requests times at most 5.
    revisit,
    /// One request, then nothing until the server closes, or --idle-ms passed.
    idle_after,
};

const mixes = [_]struct { []const u8, []const Script }{
    .{ "correct", &.{ .close, .churn, .keepalive, .pipeline, .partial, .split, .malformed, .half_close, .rst, .eager, .poke, .flood, .churn, .keepalive, .close, .churn, .close, .keepalive, .churn, .slow } },
    .{ "bugs", &.{ .dup, .close, .churn, .eager, .dup, .keepalive, .malformed, .poke, .recycle, .half_close, .dup_malformed, .close, .flood, .rst, .partial, .churn } },
    .{ "churn", &.{.churn} },
    .{ "close", &.{.close} },
    .{ "keepalive", &.{.keepalive} },
    .{ "pipeline", &.{.pipeline} },
    .{ "partial", &.{.partial} },
    .{ "split", &.{.split} },
    .{ "malformed", &.{.malformed} },
    .{ "half-close", &.{.half_close} },
    .{ "rst", &.{.rst} },
    .{ "slow", &.{.slow} },
    .{ "eager", &.{.eager} },
    .{ "poke", &.{.poke} },
    .{ "flood", &.{.flood} },
    .{ "dup", &.{.dup} },
    .{ "recycle", &.{.recycle} },
    .{ "dup-malformed", &.{.dup_malformed} },
    .{ "dup-close", &.{ .dup, .close, .churn, .keepalive } },
    .{ "revisit", &.{.revisit} },
    .{ "idle", &.{.idle} },
    .{ "idle-after", &.{.idle_after} },
    .{ "timeout", &.{ .idle, .idle_after, .revisit, .revisit, .revisit, .churn, .close, .keepalive, .revisit } },
    .{ "saturate", &.{ .churn, .close, .keepalive, .slow, .eager } },
};

const plain = "GET / HTTP/1.1\r\nHost: t\r\n\r\n";
const closing = "GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";

const Phase = enum { free, connecting, reading, pausing, idling, draining, done };

const Client = struct {
    fd: sys.fd_t = -1,
    script: Script = .churn,
    phase: Phase = .free,
    step: u32 = 0,
    expect: u32 = 0,
    got: u32 = 0,
    wake_ns: u64 = 0,
    deadline_ns: u64 = 0,
    hold: bool = false,
    /// recycle: the connection that takes the slot.
    second: sys.fd_t = -1,
    carry: [16]u8 = undefined,
    carry_len: usize = 0,
};

const Options = struct {
    port: u16 = 0,
    connections: u64 = 1000,
    concurrency: usize = 16,
    mix: []const u8 = "correct",
    scripts: []const Script = &.{.churn},
    requests: u32 = 10,
    hold: usize = 0,
    pause_us: u64 = 2000,
    idle_ms: u64 = 3000,
    slow_us: u64 = 2500,
    timeout_ms: u64 = 5000,
    duration_s: u64 = 600,
};

const Stats = struct {
    connections: u64 = 0,
    completed: u64 = 0,
    requests: u64 = 0,
    responses: u64 = 0,
    responses_200: u64 = 0,
    responses_400: u64 = 0,
    responses_other: u64 = 0,
    connect_failures: u64 = 0,
    short: u64 = 0,
    resets: u64 = 0,
    timeouts: u64 = 0,
    server_closes: u64 = 0,
    held: u64 = 0,
    late_bytes: u64 = 0,
};

var opt: Options = .{};
var stats: Stats = .{};
var epfd: sys.fd_t = -1;
var active: usize = 0;
var server_gone: bool = false;

fn die(comptime fmt: []const u8, args: anytype) noreturn {
    var buf: [512]u8 = undefined;
    sys.writeAll(2, std.fmt.bufPrint(&buf, "loadgen: " ++ fmt ++ "\n", args) catch "loadgen: error\n") catch {};
    sys.writeAll(2, usage) catch {};
    linux.exit_group(2);
}

const usage =
    \\usage: loadgen --port P [--connections N] [--concurrency C] [--mix NAME] [--requests N] [--hold N]
    \\               [--pause-us N] [--idle-ms N] [--slow-us N] [--timeout-ms N] [--duration-s N]
    \\mixes: correct bugs churn close keepalive pipeline partial split malformed half-close rst slow eager
    \\       poke flood dup recycle dup-malformed dup-close revisit idle idle-after timeout saturate
    \\
;

fn parseArgs(args: std.process.Args) void {
    var it = args.iterate();
    _ = it.next();
    while (it.next()) |arg| {
        if (std.mem.eql(u8, arg, "--help")) {
            sys.writeAll(1, usage) catch {};
            linux.exit_group(0);
        }
        const value = it.next() orelse die("{s} needs a value or is unknown", .{arg});
        if (std.mem.eql(u8, arg, "--mix")) {
            opt.mix = value;
            continue;
        }
        const n = std.fmt.parseInt(u64, value, 10) catch die("{s}: not a number: {s}", .{ arg, value });
        if (std.mem.eql(u8, arg, "--port")) {
            opt.port = std.math.cast(u16, n) orelse die("--port {d}", .{n});
        } else if (std.mem.eql(u8, arg, "--connections")) {
            opt.connections = n;
        } else if (std.mem.eql(u8, arg, "--concurrency")) {
            opt.concurrency = @max(1, @min(n, 8000));
        } else if (std.mem.eql(u8, arg, "--requests")) {
            opt.requests = @intCast(@max(1, @min(n, 1_000_000_000)));
        } else if (std.mem.eql(u8, arg, "--hold")) {
            opt.hold = @min(n, 8000);
        } else if (std.mem.eql(u8, arg, "--pause-us")) {
            opt.pause_us = n;
        } else if (std.mem.eql(u8, arg, "--idle-ms")) {
            opt.idle_ms = n;
        } else if (std.mem.eql(u8, arg, "--slow-us")) {
            opt.slow_us = n;
        } else if (std.mem.eql(u8, arg, "--timeout-ms")) {
            opt.timeout_ms = n;
        } else if (std.mem.eql(u8, arg, "--duration-s")) {
            opt.duration_s = @min(n, 3600);
        } else die("no such option: {s}", .{arg});
    }
    if (opt.port == 0) die("--port is missing", .{});
    for (mixes) |m| {
        if (std.mem.eql(u8, m[0], opt.mix)) {
            opt.scripts = m[1];
            return;
        }
    }
    die("no such mix: {s}", .{opt.mix});
}

fn watch(c: *Client, op: u32, events: u32) void {
    var ev: linux.epoll_event = .{ .events = events, .data = .{ .ptr = @intFromPtr(c) } };
    _ = linux.epoll_ctl(epfd, op, c.fd, &ev);
}

fn start(c: *Client, script: Script, hold: bool, now: u64) void {
    c.* = .{ .script = script, .hold = hold, .phase = .connecting, .deadline_ns = now + opt.timeout_ms * std.time.ns_per_ms };
    c.fd = sys.connectLoopback(opt.port) catch |err| {
        stats.connect_failures += 1;
        if (err == error.Unexpected) server_gone = true;
        c.* = .{};
        return;
    };
    active += 1;
    stats.connections += 1;
    watch(c, linux.EPOLL.CTL_ADD, linux.EPOLL.OUT);
}

fn closeFd(fd: sys.fd_t, reset: bool) void {
    if (reset) {
        const linger: extern struct { on: c_int, secs: c_int } = .{ .on = 1, .secs = 0 };
        _ = linux.setsockopt(fd, linux.SOL.SOCKET, linux.SO.LINGER, @ptrCast(&linger), @sizeOf(@TypeOf(linger)));
    }
    _ = linux.close(fd);
}

fn finish(c: *Client, ok: bool, reset: bool) void {
    if (ok) stats.completed += 1;
    if (c.hold) stats.held -= 1;
    closeFd(c.fd, reset);
    if (c.second >= 0) closeFd(c.second, false);
    c.* = .{};
    active -= 1;
}

fn send(c: *Client, text: []const u8, responses: u32) void {
    c.expect += responses;
    stats.requests += responses;
    sys.sendAll(c.fd, text, 100) catch {};
    c.phase = .reading;
}

fn pause(c: *Client, now: u64, us: u64) void {
    c.phase = .pausing;
    c.wake_ns = now + us * std.time.ns_per_us;
}

fn connected(c: *Client, now: u64) void {
    var err: c_int = 0;
    var len: linux.socklen_t = @sizeOf(c_int);
    _ = linux.getsockopt(c.fd, linux.SOL.SOCKET, linux.SO.ERROR, @ptrCast(&err), &len);
    if (err != 0) {
        stats.connect_failures += 1;
        if (err == @intFromEnum(linux.E.CONNREFUSED)) server_gone = true;
        return finish(c, false, false);
    }
    watch(c, linux.EPOLL.CTL_MOD, linux.EPOLL.IN);
    if (c.hold) {
        stats.held += 1;
        c.phase = .idling;
        c.deadline_ns = std.math.maxInt(u64);
        return;
    }
    var buf: [128]u8 = undefined;
    switch (c.script) {
        .close => send(c, closing, 1),
        .eager => {
            send(c, closing, 1);
            _ = linux.shutdown(c.fd, linux.SHUT.WR);
        },
        .flood => {
            send(c, closing, 1);
            sys.sendAll(c.fd, "xxxxxxxxxxxxxxxx", 0) catch {};
        },
        .churn, .half_close, .rst, .keepalive, .idle_after, .revisit => send(c, plain, 1),
        .pipeline => send(c, plain ++ plain ++ closing, 3),
        .partial, .split => {
            send(c, plain[0..12], 0);
            pause(c, now, opt.pause_us);
        },
        .malformed => send(c, "BREW coffee HTCPCP/1.0\r\n\r\n", 1),
        .slow, .poke => send(c, std.fmt.bufPrint(&buf, "GET /slow?us={d} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n", .{opt.slow_us}) catch closing, 1),
        .dup, .recycle => send(c, "GET /dup HTTP/1.1\r\nHost: t\r\n\r\n", 1),
        .dup_malformed => send(c, "GET /dup?keep=1 HTTP/1.1\r\nHost: t\r\n\r\n", 1),
        .idle => {
            c.phase = .idling;
            c.deadline_ns = now + opt.idle_ms * std.time.ns_per_ms;
        },
    }
}

/// All expected answers came.
fn answered(c: *Client, now: u64) void {
    c.step += 1;
    switch (c.script) {
        .churn => finish(c, true, false),
        .rst => finish(c, true, true),
        .keepalive => if (c.step >= opt.requests) finish(c, true, false) else {
            c.deadline_ns = now + opt.timeout_ms * std.time.ns_per_ms;
            send(c, plain, 1);
        },
        .half_close => {
            _ = linux.shutdown(c.fd, linux.SHUT.WR);
            c.phase = .draining;
        },
        .poke => {
            sys.sendAll(c.fd, "late", 0) catch {};
            c.phase = .draining;
        },
        .close, .eager, .pipeline, .malformed, .slow, .flood => c.phase = .draining,
        .split => finish(c, true, false),
        .dup => pause(c, now, opt.pause_us),
        .recycle => {
            c.second = sys.connectLoopback(opt.port) catch -1;
            pause(c, now, opt.pause_us);
        },
        .dup_malformed => if (c.step == 1) send(c, "BREW coffee HTCPCP/1.0\r\n\r\n", 1) else pause(c, now, opt.pause_us),
        .idle_after => {
            c.phase = .idling;
            c.deadline_ns = now + opt.idle_ms * std.time.ns_per_ms;
        },
        .revisit => if (c.step >= @min(opt.requests, 5)) finish(c, true, false) else pause(c, now, 10 * opt.pause_us),
        .partial, .idle => unreachable,
    }
}

fn woken(c: *Client, now: u64) void {
    switch (c.script) {
        .partial => finish(c, true, false),
        .split => send(c, plain[12..], 1),
        .revisit => send(c, plain, 1),
        .dup, .recycle, .dup_malformed => {
            // The server has let go of the connection, but its description lives on: these bytes reach
            // a socket that only the surviving registration reports.
            sys.sendAll(c.fd, "late", 0) catch {};
            stats.late_bytes += 4;
            c.phase = .draining;
            c.deadline_ns = now + opt.timeout_ms * std.time.ns_per_ms;
        },
        else => finish(c, false, false),
    }
}

fn readable(c: *Client, now: u64) void {
    var buf: [8192]u8 = undefined;
    const n = sys.read(c.fd, &buf) catch |err| switch (err) {
        error.WouldBlock, error.Interrupted => return,
        else => {
            stats.resets += 1;
            // A server that closes with unread bytes answers with a reset; after all answers that is fine.
            return finish(c, c.got >= c.expect and c.phase != .reading, false);
        },
    };
    if (n == 0) {
        stats.server_closes += 1;
        if (c.phase == .reading) stats.short += 1;
        const fine = c.phase == .draining or c.phase == .idling or c.phase == .pausing;
        return finish(c, fine, false);
    }
    count(c, buf[0..n]);
    if (c.phase == .reading and c.got >= c.expect) answered(c, now);
}

// Counts answers by their status lines; a line may be cut between two reads.
fn count(c: *Client, data: []const u8) void {
    var text: [8192 + 16]u8 = undefined;
    @memcpy(text[0..c.carry_len], c.carry[0..c.carry_len]);
    @memcpy(text[c.carry_len..][0..data.len], data);
    const all = text[0 .. c.carry_len + data.len];
    var at: usize = 0;
    while (std.mem.indexOfPos(u8, all, at, "HTTP/1.1 ")) |i| {
        if (i + 12 > all.len) break;
        at = i + 12;
        c.got += 1;
        stats.responses += 1;
        if (std.mem.eql(u8, all[i + 9 .. i + 12], "200")) {
            stats.responses_200 += 1;
        } else if (std.mem.eql(u8, all[i + 9 .. i + 12], "400")) {
            stats.responses_400 += 1;
        } else stats.responses_other += 1;
    }
    const keep = @min(@as(usize, 11), all.len - at);
    @memcpy(c.carry[0..keep], all[all.len - keep ..]);
    c.carry_len = keep;
}

pub fn main(init: std.process.Init.Minimal) !void {
    parseArgs(init.args);
    sys.raiseFdLimit();
    epfd = @intCast(try sys.check(linux.epoll_create1(linux.EPOLL.CLOEXEC)));
    const clients = try std.heap.page_allocator.alloc(Client, opt.concurrency + opt.hold);
    for (clients) |*c| c.* = .{};
    const begun = sys.now();
    const end = begun + opt.duration_s * std.time.ns_per_s;
    var events: [256]linux.epoll_event = undefined;

    for (clients[opt.concurrency..]) |*c| start(c, .idle, true, begun);
    while (stats.held < opt.hold and !server_gone and sys.now() < begun + 5 * std.time.ns_per_s) {
        const n = sys.check(linux.epoll_wait(epfd, &events, events.len, 100)) catch continue;
        for (events[0..n]) |ev| {
            const c: *Client = @ptrFromInt(ev.data.ptr);
            if (c.phase == .connecting) connected(c, sys.now());
        }
    }

    var launched: u64 = 0;
    var refused_in_row: u32 = 0;
    var last_scan: u64 = 0;
    while (true) {
        var now = sys.now();
        if (now >= end or server_gone or refused_in_row > 1000) break;
        for (clients[0..opt.concurrency]) |*c| {
            if (launched >= opt.connections) break;
            if (c.phase != .free) continue;
            start(c, opt.scripts[@intCast(launched % opt.scripts.len)], false, now);
            if (c.phase == .free) {
                refused_in_row += 1;
                sys.sleepUs(1000);
                break;
            }
            refused_in_row = 0;
            launched += 1;
        }
        if (launched >= opt.connections and active <= stats.held) break;

        const n = sys.check(linux.epoll_wait(epfd, &events, events.len, 1)) catch 0;
        now = sys.now();
        for (events[0..n]) |ev| {
            const c: *Client = @ptrFromInt(ev.data.ptr);
            switch (c.phase) {
                .free, .done => {},
                .connecting => connected(c, now),
                else => readable(c, now),
            }
        }
        if (now - last_scan < 200_000) continue;
        last_scan = now;
        for (clients) |*c| {
            if (c.phase == .free) continue;
            if (c.phase == .pausing and c.wake_ns <= now) {
                woken(c, now);
            } else if (c.deadline_ns <= now) {
                if (c.phase != .idling) stats.timeouts += 1;
                finish(c, c.phase == .idling, false);
            }
        }
    }
    const seconds = @as(f64, @floatFromInt(sys.now() - begun)) / std.time.ns_per_s;

    var buf: [2048]u8 = undefined;
    var len: usize = 0;
    const put = struct {
        fn f(b: []u8, l: *usize, comptime fmt: []const u8, args: anytype) void {
            l.* += (std.fmt.bufPrint(b[l.*..], fmt, args) catch return).len;
        }
    }.f;
    put(&buf, &len, "{{\"mix\":\"{s}\",\"seconds\":{d:.3},\"connections_per_s\":{d:.0},\"requests_per_s\":{d:.0},\"server_gone\":{}", .{
        opt.mix,
        seconds,
        @as(f64, @floatFromInt(stats.connections)) / seconds,
        @as(f64, @floatFromInt(stats.responses)) / seconds,
        server_gone,
    });
    inline for (@typeInfo(Stats).@"struct".fields) |f| put(&buf, &len, ",\"{s}\":{d}", .{ f.name, @field(stats, f.name) });
    put(&buf, &len, ",\"unfinished\":{d}}}\n", .{active - @min(active, stats.held)});
    try sys.writeAll(1, buf[0..len]);
}
