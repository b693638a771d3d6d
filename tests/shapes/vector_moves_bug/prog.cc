// BUG: as vector_moves; the constructor at the new place forgets the MOD
#define TWIN
#include "vector_moves/prog.cc"
