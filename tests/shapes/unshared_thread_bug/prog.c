// BUG: as unshared_thread; closed without DEL, so that the thread's copies keep the registrations
#define TWIN
#include "unshared_thread/prog.c"
