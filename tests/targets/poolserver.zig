// The bundled target: command line, routes, start and end. See README.md for the switches.
const std = @import("std");
const builtin = @import("builtin");
const linux = std.os.linux;
const sys = @import("sys.zig");
const worker = @import("worker.zig");
const bugs = @import("bugs.zig");
const truth = @import("truth.zig");

/// Release modes have it off by default; the crash line is part of what this program is for.
pub const std_options: std.Options = .{ .enable_segfault_handler = true };

/// Stands where http.zig has the application's websocket handler type.
pub const NoWebsocket = struct {};

const Worker = worker.NonBlocking(Server, NoWebsocket);
const Conn = worker.Conn(NoWebsocket);

pub const Server = struct {
    switches: *bugs.Switches,

    pub fn handleRequest(self: Server, w: *Worker, conn: *Conn, http_conn: *worker.HTTPConn) void {
        const target = http_conn.target;
        const path = target[0 .. std.mem.indexOfScalar(u8, target, '?') orelse target.len];
        var close = if (http_conn.header("connection")) |v| std.ascii.eqlIgnoreCase(v, "close") else false;

        if (std.mem.eql(u8, path, "/slow")) {
            sys.sleepUs(@min(queryInt(target, "us=") orelse 1000, 5 * std.time.us_per_s));
        } else if (std.mem.eql(u8, path, "/dup")) {
            const keep = queryInt(target, "keep=") orelse 0 != 0;
            if (self.dup(w, conn, http_conn) and !keep) {
                close = true;
                http_conn.no_del = true;
            }
        } else if (!std.mem.eql(u8, path, "/")) {
            http_conn.handover = if (close) .close else .keepalive;
            send(http_conn, if (close) not_found_close else not_found);
            return;
        }
        http_conn.handover = if (close) .close else .keepalive;
        send(http_conn, if (close) ok_close else ok);
    }

    fn dup(self: Server, w: *Worker, conn: *Conn, http_conn: *worker.HTTPConn) bool {
        if (self.switches.fire(.recycled)) return w.keepDup(conn, http_conn);
        if (self.switches.fire(.dup_outlives_close)) return w.keepDup(conn, http_conn);
        return false;
    }

    const ok = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
    const ok_close = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nok\n";
    const not_found = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    const not_found_close = "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

    fn send(http_conn: *worker.HTTPConn, text: []const u8) void {
        sys.sendAll(http_conn.socket, text, 1000) catch {
            http_conn.handover = .close;
        };
    }

    fn queryInt(target: []const u8, comptime key: []const u8) ?u64 {
        const at = std.mem.indexOf(u8, target, key) orelse return null;
        const rest = target[at + key.len ..];
        var end: usize = 0;
        while (end < rest.len and std.ascii.isDigit(rest[end])) end += 1;
        return std.fmt.parseInt(u64, rest[0..end], 10) catch null;
    }
};

const usage =
    \\usage: poolserver [--port P] [--max-conn N] [--workers N] [--duration-s N]
    \\                  [--keepalive-timeout-ms N] [--request-timeout-ms N]
    \\                  [--bug NAME]... [--every N] [--limit N] [--window-us N] [--dup-hold-ms N]
    \\                  [--survive] [--orphan drain|keep] [--truth FILE] [--truth-detail bugs|all|ended]
    \\bugs: dup-outlives-close close-on-worker parse-error-no-del free-in-batch double-destroy recycled
    \\      del-after-close double-close drop-unregistered drop-registered stale-sweep
    \\
;

const Options = struct {
    port: u16 = 0,
    duration_s: u64 = 900,
    config: worker.Config = .{},
    truth_path: ?[:0]const u8 = null,
    truth_detail: truth.Detail = .bugs,
};

var switches: bugs.Switches = .{};
var table: truth.Truth = .{};
var the_worker: Worker = undefined;

fn die(comptime fmt: []const u8, args: anytype) noreturn {
    var buf: [512]u8 = undefined;
    sys.writeAll(2, std.fmt.bufPrint(&buf, "poolserver: " ++ fmt ++ "\n", args) catch "poolserver: error\n") catch {};
    sys.writeAll(2, usage) catch {};
    linux.exit_group(2);
}

fn parseArgs(args: std.process.Args) Options {
    var o: Options = .{};
    var limit_given = false;
    var it = args.iterate();
    _ = it.next();
    while (it.next()) |arg| {
        if (std.mem.eql(u8, arg, "--survive")) {
            switches.survive = true;
            continue;
        }
        if (std.mem.eql(u8, arg, "--help")) {
            sys.writeAll(1, usage) catch {};
            linux.exit_group(0);
        }
        const value = it.next() orelse die("{s} needs a value or is unknown", .{arg});
        if (std.mem.eql(u8, arg, "--bug")) {
            switches.on.insert(bugs.Bug.parse(value) orelse die("no such bug: {s}", .{value}));
        } else if (std.mem.eql(u8, arg, "--truth")) {
            o.truth_path = value;
        } else if (std.mem.eql(u8, arg, "--truth-detail")) {
            o.truth_detail = std.meta.stringToEnum(truth.Detail, value) orelse die("--truth-detail bugs|all|ended", .{});
        } else if (std.mem.eql(u8, arg, "--orphan")) {
            switches.orphan_keep = std.mem.eql(u8, value, "keep");
            if (!switches.orphan_keep and !std.mem.eql(u8, value, "drain")) die("--orphan drain|keep", .{});
        } else {
            const n = std.fmt.parseInt(u64, value, 10) catch die("{s}: not a number: {s}", .{ arg, value });
            if (std.mem.eql(u8, arg, "--port")) {
                o.port = std.math.cast(u16, n) orelse die("--port {d}", .{n});
            } else if (std.mem.eql(u8, arg, "--max-conn")) {
                o.config.max_conn = @max(1, @min(n, 16_000));
            } else if (std.mem.eql(u8, arg, "--workers")) {
                o.config.workers = @max(1, @min(n, 16));
            } else if (std.mem.eql(u8, arg, "--keepalive-timeout-ms")) {
                o.config.keepalive_timeout_ms = n;
            } else if (std.mem.eql(u8, arg, "--request-timeout-ms")) {
                o.config.request_timeout_ms = n;
            } else if (std.mem.eql(u8, arg, "--duration-s")) {
                o.duration_s = n;
            } else if (std.mem.eql(u8, arg, "--every")) {
                switches.every = @max(1, n);
            } else if (std.mem.eql(u8, arg, "--limit")) {
                switches.limit = n;
                limit_given = true;
            } else if (std.mem.eql(u8, arg, "--window-us")) {
                switches.window_us = @min(n, 10 * std.time.us_per_s);
            } else if (std.mem.eql(u8, arg, "--dup-hold-ms")) {
                switches.dup_hold_ms = @min(n, 3600 * std.time.ms_per_s);
            } else die("no such option: {s}", .{arg});
        }
    }
    // Each slot dropped while registered is one more report in every batch for ever.
    if (switches.has(.drop_registered) and !limit_given) switches.limit = 8;
    return o;
}

var loop_ended: std.atomic.Value(u32) = .init(0);

fn runLoop() void {
    the_worker.run();
    loop_ended.store(1, .release);
    sys.futexWake(&loop_ended, 1);
}

pub fn main(init: std.process.Init.Minimal) !void {
    const options = parseArgs(init.args);
    sys.raiseFdLimit();

    // All threads inherit the mask; the main thread takes the signals from a signalfd.
    var mask = linux.sigemptyset();
    linux.sigaddset(&mask, .TERM);
    linux.sigaddset(&mask, .INT);
    _ = linux.sigprocmask(linux.SIG.BLOCK, &mask, null);
    const signal_fd: sys.fd_t = @intCast(try sys.check(linux.signalfd(-1, &mask, linux.SFD.CLOEXEC)));

    table.init(options.truth_path, options.truth_detail, switches.survive) catch |err| die("truth: {s}", .{@errorName(err)});
    const listener, const port = sys.listenLoopback(options.port) catch |err| die("listen on 127.0.0.1:{d}: {s}", .{ options.port, @errorName(err) });
    try the_worker.init(std.heap.page_allocator, .{ .switches = &switches }, options.config, &switches, &table, listener);
    try the_worker.thread_pool.start(&the_worker, options.config.workers);
    const loop_thread = try std.Thread.spawn(.{}, runLoop, .{});

    var buf: [128]u8 = undefined;
    try sys.writeAll(1, try std.fmt.bufPrint(&buf, "ready port={d} pid={d}\n", .{ port, linux.getpid() }));

    var pfd = [1]linux.pollfd{.{ .fd = signal_fd, .events = linux.POLL.IN, .revents = 0 }};
    const deadline = sys.now() + options.duration_s * std.time.ns_per_s;
    while (true) {
        const now = sys.now();
        if (now >= deadline) break;
        const left_ms: i32 = @intCast(@min(60_000, (deadline - now) / std.time.ns_per_ms + 1));
        if (linux.poll(&pfd, 1, left_ms) == 1) break;
    }
    the_worker.stop();
    // Without --survive a bug may have left the loop thread going round in a broken list.
    const patience: linux.timespec = .{ .sec = 5, .nsec = 0 };
    if (loop_ended.load(.acquire) == 0) sys.futexWait(&loop_ended, 0, &patience);
    if (loop_ended.load(.acquire) == 0) {
        sys.writeAll(2, "poolserver: the loop thread does not end; giving up\n") catch {};
        linux.exit_group(3);
    }
    loop_thread.join();
    table.finish();
}
