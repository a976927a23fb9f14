/* What the two halves of the library share: fuse_ops.c (pyfuse3's requests, handles), fuse_made.c (requests that never reach pyfuse3). */
#ifndef CTXFS_FUSE_OPS_H
#define CTXFS_FUSE_OPS_H

#define FUSE_USE_VERSION 35
#define _GNU_SOURCE
#include <fuse_lowlevel.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#define SERIAL_SHIFT 40

/* but for what Python calls, and what pyfuse3 takes for libfuse's, nobody sees a name */
#pragma GCC visibility push(hidden)

/* Numbers and their counts: a hash table with open addressing, never more than half full. A count of 0 is not there. */
struct table {
    struct { uint64_t number, count; } *slots;
    size_t size, used;
};

uint64_t count_of(const struct table *table, uint64_t number);
int add(struct table *table, uint64_t number);      /* 0 when there is no memory */
int take(struct table *table, uint64_t number);     /* 0 when it was not there */
void empty(struct table *table);

/* fuse_ops.c */
extern struct table noted, plain, opens;
uint64_t new_handle(fuse_ino_t ino);
int is_ours(uint64_t fh);
const struct stat *known_attr(fuse_ino_t ino, double *timeout);     /* NULL: ask Python */

/* fuse_made.c */
void made_session(struct fuse_session *session, int (*receive)(struct fuse_session *, struct fuse_buf *));
int made_receive(struct fuse_session *session, struct fuse_buf *buf);

#pragma GCC visibility pop

extern uint64_t ctxfs_answered;

#endif
