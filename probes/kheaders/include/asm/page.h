/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* bcc sizes ring buffers with it; a multiple of any real page size is what matters. */
#ifndef AF_PAGE_H
#define AF_PAGE_H
#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif
#endif
