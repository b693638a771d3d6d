// BUG: as pidfd_taken; closed without DEL: the other process's duplicates keep the registrations
#define TWIN
#include "pidfd_taken/prog.c"
