// Base classes: the handler's object begins before, at or behind the slot; two classes with one name.
#define KEEP __attribute__((noinline, used))
volatile long sum;

namespace app { namespace net {
struct Handler { virtual ~Handler(); virtual void on_event(); long a = 1; };
struct Timer { virtual ~Timer(); virtual void on_timer(); long b = 2; };
struct Conn : Timer, Handler {
    Conn();
    explicit Conn(int fd);
    ~Conn() override;
    void close_now();
    int fd = 3;
};
struct Tls : Conn { ~Tls() override; void on_tls(); long key = 4; };
KEEP Handler::~Handler() { sum++; }
KEEP void Handler::on_event() { sum += a; }
KEEP Timer::~Timer() { sum++; }
KEEP void Timer::on_timer() { sum += b; }
KEEP Conn::Conn() { sum++; }
KEEP Conn::Conn(int number) : fd(number) { sum++; }
KEEP Conn::~Conn() { sum--; }
KEEP void Conn::close_now() { sum += fd; }
KEEP Tls::~Tls() { sum--; }
KEEP void Tls::on_tls() { sum += key; }
KEEP Conn *make() { return new Conn; }
KEEP void drop(Conn *conn) { sum++; delete conn; }
} }

namespace other {
struct Conn { ~Conn(); long x; };
KEEP Conn::~Conn() { sum += x; }
KEEP void drop(Conn *conn) { delete conn; }
}

int main() {
    app::net::Conn *conn = app::net::make();
    conn->on_event(); conn->on_timer(); conn->close_now();
    app::net::drop(conn);
    app::net::drop(new app::net::Conn(7));
    app::net::Tls *tls = new app::net::Tls;
    tls->on_tls();
    app::net::drop(tls);
    other::drop(new other::Conn{5});
    return 0;
}
