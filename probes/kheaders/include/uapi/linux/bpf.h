/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Empty on purpose: bcc force-includes its own copy of the BPF interface first. */
#ifndef AF_UAPI_BPF_H
#define AF_UAPI_BPF_H
#endif
