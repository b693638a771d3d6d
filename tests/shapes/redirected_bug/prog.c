// BUG: as redirected; at the end the descriptor is closed twice
#define TWIN
#include "redirected/prog.c"
