// See cserver_options.h.
#include "cserver_options.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options options = {
    .max_conn = 1024, .workers = 4, .every = 1, .limit = UINT32_MAX, .hold_ms = 2000, .duration_s = 900};

static const char *const bug_names[BUGS] = {"dup-outlives-close", "close-on-worker", "double-destroy",
                                            "free-in-batch", "assert-after-destroy"};

void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("cserver: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(2);
}

static const char usage[] =
    "usage: cserver [--port P] [--max-conn N] [--workers N] [--duration-s N] [--bug NAME]... [--every N]\n"
    "               [--limit N] [--window-us N] [--dup-hold-ms N] [--survive] [--truth FILE]\n"
    "               [--truth-detail bugs|all]\n";

void parse_options(int argc, char **argv) {
    const struct {
        const char *name;
        unsigned *value;
    } numbers[] = {
        {"--port", &options.port},           {"--max-conn", &options.max_conn},
        {"--workers", &options.workers},     {"--every", &options.every},
        {"--limit", &options.limit},         {"--window-us", &options.window_us},
        {"--dup-hold-ms", &options.hold_ms}, {"--duration-s", &options.duration_s},
    };
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--survive") == 0) {
            options.survive = true;
            continue;
        }
        const char *name = argv[i], *value = argv[++i];
        bool known = false;
        for (size_t n = 0; value && n < sizeof numbers / sizeof numbers[0]; n++)
            if (strcmp(name, numbers[n].name) == 0 && sscanf(value, "%u", numbers[n].value) == 1) known = true;
        for (int bug = 0; value && strcmp(name, "--bug") == 0 && bug < BUGS; bug++)
            if (strcmp(value, bug_names[bug]) == 0) known = options.bugs[bug] = true;
        if (value && strcmp(name, "--truth") == 0) known = (options.truth = value) != NULL;
        if (value && strcmp(name, "--truth-detail") == 0) known = true, options.all = strcmp(value, "all") == 0;
        if (!known) die("cannot use %s %s\n%s", name, value ? value : "", usage);
    }
    if (!options.every || !options.workers || options.workers > 64) die("out of range\n%s", usage);
    if (!options.max_conn || options.max_conn > 16000) die("--max-conn is 1 to 16000");
}
