/* What a program says of itself while it runs: C (created), D (destroyed), O (disowned), S (dispatched).
   -DINLINE_NOTES: without calls, which keep optimizers from unrolling and merging. */
#ifdef __cplusplus
extern "C" {
#endif
struct note { long what; const void *slot; };
extern volatile struct note notes[4096];
extern volatile long noted;
#ifdef INLINE_NOTES
static inline void note(int what, const void *slot) {
    long at = noted;
    notes[at].what = what;
    notes[at].slot = slot;
    noted = at + 1;
}
#else
void note(int what, const void *slot);
#endif
#ifdef __cplusplus
}
#endif
