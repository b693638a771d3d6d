// Counts in wrappers: std::atomic, and members of base classes.
#include <atomic>
#define KEEP __attribute__((noinline, used))
volatile long sum;
struct Counted { std::atomic<int> refs{2}; };
struct Conn : Counted { long id = 1; std::atomic<unsigned long> wide{1}; void unref(); void drop(); };
KEEP void Conn::unref() { if (--refs == 0) { sum++; delete this; } }
KEEP void Conn::drop() { if (wide.fetch_sub(1) == 1) { sum++; delete this; } }
KEEP void destroy(Conn *conn) { sum++; delete conn; }
int main() {
    Conn *conn = new Conn, *other = new Conn;
    conn->unref(); conn->unref(); other->drop(); destroy(new Conn);
    return 0;
}
