/* What the parts of the library share: fuse_ops.c (pyfuse3's requests, handles), fuse_listing.c (directories), fuse_made.c (new files),
 * fuse_answers.c (requests that never reach pyfuse3). */
#ifndef CTXFS_FUSE_OPS_H
#define CTXFS_FUSE_OPS_H

#define FUSE_USE_VERSION 35
#define _GNU_SOURCE
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#define SERIAL_SHIFT 40
#define NAME_BYTES 255
#define NANO 1000000000LL

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
int put(struct table *table, uint64_t number, uint64_t count);      /* 0 when there is no memory */
void drop(struct table *table, uint64_t number);
void empty(struct table *table);

/* fuse_ops.c */
extern struct table noted, plain, opens;
uint64_t new_handle(fuse_ino_t ino);
int is_ours(uint64_t fh);
const struct stat *known_attr(fuse_ino_t ino);      /* NULL: ask Python */
void forget_attr(fuse_ino_t ino);

/* fuse_listing.c */
size_t write_entries(char *buffer, size_t size);
int is_end(uint64_t fh, uint64_t offset);           /* nothing follows in this open directory, as far as was said when it was read */
void forget_end(uint64_t fh);
int note_released(uint64_t fh);                     /* 0: Python is to be told at once */

/* fuse_made.c. A file, as Python reads it (fuse_made.py). Times in ns. */
struct made {
    uint64_t ino, parent, fh, size, blocks;
    int64_t atime, mtime, ctime, made_ns;
    uint32_t mode, uid, gid, flags;
    int32_t fd;                         /* of the staging file; -1 when it was closed */
    uint32_t is_open, is_changed, is_known, name_length, spare;
    char name[NAME_BYTES + 1];
};

struct directory;
const struct fuse_attr *directory_attr(uint64_t ino);                               /* NULL: it is not armed */
int is_free(uint64_t parent, const char *name, size_t length);                      /* 0 also when nobody knows */
int note_absent(uint64_t parent, const char *name, size_t length);                  /* 0: Python must answer */
struct made *made_of(uint64_t ino);
int64_t now_ns(void);
/* each 0 when it could not be done, and nothing has happened */
struct made *make_file(uint64_t parent, const char *name, size_t length, uint32_t mode, uint32_t flags, uint32_t uid, uint32_t gid);
int write_file(struct made *made, const void *bytes, uint32_t size, uint64_t offset);
int change_file(struct made *made, const struct made *changed);
void measure_file(struct made *made);
void close_file(struct made *made);
int has_open_files(void);
int must_be_taken(void);                                                            /* before more can be made */

/* fuse_answers.c */
void answer_session(struct fuse_session *session, int (*receive)(struct fuse_session *, struct fuse_buf *));
int receive_kept(struct fuse_session *session, struct fuse_buf *buf);

#pragma GCC visibility pop

extern uint64_t ctxfs_answered, ctxfs_timeout;

#endif
