// BUG: as daemonized; the daemon destroys what is registered
#define TWIN
#include "daemonized/prog.c"
