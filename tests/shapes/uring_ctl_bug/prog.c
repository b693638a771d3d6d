// BUG: as uring_ctl; destroyed and delivered while registered
#define TWIN
#include "uring_ctl/prog.c"
