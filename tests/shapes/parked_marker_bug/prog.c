// BUG: as parked_marker; one of ten is destroyed and not parked
#define TWIN
#include "parked_marker/prog.c"
