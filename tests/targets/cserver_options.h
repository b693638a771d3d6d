// The command line of cserver; README.md explains it.
#ifndef CSERVER_OPTIONS_H
#define CSERVER_OPTIONS_H

#include <stdbool.h>

enum bug { DUP_OUTLIVES_CLOSE, CLOSE_ON_WORKER, DOUBLE_DESTROY, FREE_IN_BATCH, ASSERT_AFTER_DESTROY, BUGS };

struct options {
    unsigned port, max_conn, workers, every, limit, window_us, hold_ms, duration_s;
    bool bugs[BUGS], survive, all;
    const char *truth;
};

extern struct options options;

void parse_options(int argc, char **argv);
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
