struct session { struct session *next; int state; };
struct session *session_open(int state);
void session_close(struct session *s);
