/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Empty on purpose: nothing here touches packets. */
#ifndef AF_UAPI_IF_PACKET_H
#define AF_UAPI_IF_PACKET_H
#endif
