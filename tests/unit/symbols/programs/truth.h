/* What a program says of itself while it runs: C (created), D (destroyed), O (disowned), S (dispatched). */
#ifdef __cplusplus
extern "C"
#endif
void note(int what, const void *slot);
