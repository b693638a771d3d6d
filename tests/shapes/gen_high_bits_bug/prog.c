// BUG: as gen_high_bits without a guard in its profile; a duplicate keeps the registration
#define TWIN
#include "gen_high_bits/prog.c"
