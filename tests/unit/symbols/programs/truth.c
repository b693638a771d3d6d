/* The ground truth of the matrix programs, in order. No optimizer may look into it, nor past it. */
#include <stdio.h>
#include "truth.h"

__attribute__((noinline)) void note(int what, const void *slot) {
    printf("%c %p\n", what, slot);
    __asm__ volatile("" ::: "memory");
}
