// Intrusive doubly linked lists, plain and with a lock. They own no nodes.
const sys = @import("sys.zig");

pub fn List(comptime T: type) type {
    return struct {
        head: ?*T = null,
        tail: ?*T = null,

        const Self = @This();

        pub fn insert(self: *Self, node: *T) void {
            node.next = null;
            node.prev = self.tail;
            if (self.tail) |tail| tail.next = node else self.head = node;
            self.tail = node;
        }

        pub fn remove(self: *Self, node: *T) void {
            if (node.prev) |prev| prev.next = node.next else self.head = node.next;
            if (node.next) |next| next.prev = node.prev else self.tail = node.prev;
            node.prev = null;
            node.next = null;
        }
    };
}

pub fn ConcurrentList(comptime T: type) type {
    return struct {
        inner: List(T) = .{},
        mut: sys.Mutex = .{},

        const Self = @This();

        pub fn insert(self: *Self, node: *T) void {
            self.mut.lock();
            defer self.mut.unlock();
            self.inner.insert(node);
        }

        pub fn remove(self: *Self, node: *T) void {
            self.mut.lock();
            defer self.mut.unlock();
            self.inner.remove(node);
        }

        pub fn first(self: *Self) ?*T {
            self.mut.lock();
            defer self.mut.unlock();
            return self.inner.head;
        }
    };
}
