/* Counts a process's file operations and large allocations, and spoils the n-th of them.
 *
 * Loaded with LD_PRELOAD, so that what libraries in C++ and Rust do is counted like what Python
 * does. Nothing is counted before faults_arm, which a forked child calls on itself; what it
 * counts lies in memory that its parent shares and reads after the child is gone.
 *
 * File operations are those that change what is below a folder: open for writing, write, sync,
 * rename, truncate, mkdir, unlink. A write that is spoilt has written its first half.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum operation { OPEN, WRITE, SYNC, RENAME, TRUNCATE, MKDIR, UNLINK, ALLOCATE };
enum kind { NOTHING, ONCE, FROM_THEN_ON, KILL };

static const char *const names[] = {"open",     "write", "sync",   "rename",
                                    "truncate", "mkdir", "unlink", "allocate"};

struct shared {
    atomic_long files, allocations; /* counted so far */
    atomic_int spoilt;              /* whether the point was reached */
    char what[PATH_MAX + 32];       /* the point: operation and path, or bytes */
};

static struct shared *shared;
static struct {
    volatile int armed;
    char folder[PATH_MAX];
    size_t folder_length;
    int allocations; /* whether allocations are spoilt, not file operations */
    size_t smallest; /* allocation that counts */
    long nth;
    enum kind kind;
    int error;
    int log; /* descriptor that points are listed in, or -1 */
} plan;

static _Thread_local int inside; /* what the listing itself does is not counted */

__attribute__((constructor)) static void start(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) abort();
}

void faults_arm(const char *folder, int allocations, long smallest, long nth, int kind, int error,
                int log) {
    memset(shared, 0, sizeof *shared);
    snprintf(plan.folder, sizeof plan.folder, "%s", folder);
    plan.folder_length = strlen(folder);
    plan.allocations = allocations;
    plan.smallest = (size_t)smallest;
    plan.nth = nth;
    plan.kind = (enum kind)kind;
    plan.error = error;
    plan.log = log;
    plan.armed = 1;
}

long faults_counted(int allocations) {
    return atomic_load(allocations ? &shared->allocations : &shared->files);
}

int faults_spoilt(void) { return atomic_load(&shared->spoilt); }
const char *faults_what(void) { return shared->what; }

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static void tell(enum operation operation, const char *path) {
    char line[PATH_MAX + 32];
    int length = snprintf(line, sizeof line, "%s %s\n", names[operation], path);
    REAL(write);
    if (plan.log >= 0 && length > 0) (void)!real(plan.log, line, (size_t)length);
}

/* Whether this call is to be spoilt; errno is set then. Does not return where it is to kill. */
static int is_spoilt(enum operation operation, const char *path, int dies_here) {
    long number = 1 + atomic_fetch_add(
                          operation == ALLOCATE ? &shared->allocations : &shared->files, 1);
    if (operation != ALLOCATE) {
        inside = 1;
        tell(operation, path);
        inside = 0;
    }
    if ((operation == ALLOCATE) != plan.allocations || plan.kind == NOTHING) return 0;
    if (plan.kind == FROM_THEN_ON) { /* a full disk, which still lets files go */
        if (number < plan.nth || operation == UNLINK) return 0;
    } else if (number != plan.nth) {
        return 0;
    }
    if (!atomic_exchange(&shared->spoilt, 1))
        snprintf(shared->what, sizeof shared->what, "%s %s", names[operation],
                 path + (operation == ALLOCATE ? 0 : plan.folder_length));
    if (plan.kind == KILL && dies_here) _exit(137);
    errno = plan.error;
    return 1;
}

static int below(const char *path) {
    return !strncmp(path, plan.folder, plan.folder_length) && path[plan.folder_length] == '/';
}

/* The absolute path that `path` is, from the folder that is open as `at`. */
static int absolute(int at, const char *path, char *found) {
    char base[PATH_MAX];
    if (path[0] == '/') return snprintf(found, PATH_MAX, "%s", path) < PATH_MAX;
    if (at == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
    }
    return snprintf(found, PATH_MAX, "%s/%s", base, path) < PATH_MAX;
}

static int path_is_spoilt(enum operation operation, int at, const char *path) {
    char found[PATH_MAX];
    if (!plan.armed || inside || !absolute(at, path, found) || !below(found)) return 0;
    return is_spoilt(operation, found, 1);
}

static int descriptor_is_spoilt(enum operation operation, int descriptor, int dies_here) {
    char link[64], found[PATH_MAX];
    if (!plan.armed || inside) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, found, sizeof found - 1);
    if (length < 0) return 0;
    found[length] = 0;
    return below(found) && is_spoilt(operation, found, dies_here);
}

/* ---- open ---- */

static int changes(int flags) {
    return (flags & (O_CREAT | O_TRUNC | O_APPEND)) || (flags & O_ACCMODE) != O_RDONLY;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = (mode_t)va_arg(rest, int); \
        va_end(rest); \
    }

#define DEFINE_OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) \
        REAL(name); \
        if (changes(flags) && path_is_spoilt(OPEN, AT_FDCWD, path)) return -1; \
        return real(path, flags, mode); \
    }
#define DEFINE_OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        MODE(flags) \
        REAL(name); \
        if (changes(flags) && path_is_spoilt(OPEN, at, path)) return -1; \
        return real(at, path, flags, mode); \
    }
#define DEFINE_FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        if (strpbrk(mode, "wa+") && path_is_spoilt(OPEN, AT_FDCWD, path)) return NULL; \
        return real(path, mode); \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)
DEFINE_FOPEN(fopen)
DEFINE_FOPEN(fopen64)

/* ---- write ---- */

#define SPOIL_WRITE(descriptor, half) \
    if (descriptor_is_spoilt(WRITE, descriptor, 0)) { \
        int error = errno; \
        (void)!(half); \
        if (plan.kind == KILL) _exit(137); \
        errno = error; \
        return -1; \
    }

ssize_t write(int descriptor, const void *data, size_t count) {
    REAL(write);
    SPOIL_WRITE(descriptor, real(descriptor, data, count / 2))
    return real(descriptor, data, count);
}

#define DEFINE_PWRITE(name, offset_type) \
    ssize_t name(int descriptor, const void *data, size_t count, offset_type at) { \
        REAL(name); \
        SPOIL_WRITE(descriptor, real(descriptor, data, count / 2, at)) \
        return real(descriptor, data, count, at); \
    }
DEFINE_PWRITE(pwrite, off_t)
DEFINE_PWRITE(pwrite64, off64_t)

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(writev);
    SPOIL_WRITE(descriptor, real(descriptor, parts, count / 2))
    return real(descriptor, parts, count);
}

#define DEFINE_SENDFILE(name, offset_type) \
    ssize_t name(int to, int from, offset_type *at, size_t count) { \
        REAL(name); \
        SPOIL_WRITE(to, real(to, from, at, count / 2)) \
        return real(to, from, at, count); \
    }
DEFINE_SENDFILE(sendfile, off_t)
DEFINE_SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t count,
                        unsigned flags) {
    REAL(copy_file_range);
    SPOIL_WRITE(to, real(from, from_at, to, to_at, count / 2, flags))
    return real(from, from_at, to, to_at, count, flags);
}

/* ---- sync, truncate ---- */

#define DEFINE_ON_DESCRIPTOR(name, operation, parameters, ...) \
    int name parameters { \
        REAL(name); \
        if (descriptor_is_spoilt(operation, descriptor, 1)) return -1; \
        return real(__VA_ARGS__); \
    }
DEFINE_ON_DESCRIPTOR(fsync, SYNC, (int descriptor), descriptor)
DEFINE_ON_DESCRIPTOR(fdatasync, SYNC, (int descriptor), descriptor)
DEFINE_ON_DESCRIPTOR(ftruncate, TRUNCATE, (int descriptor, off_t size), descriptor, size)
DEFINE_ON_DESCRIPTOR(ftruncate64, TRUNCATE, (int descriptor, off64_t size), descriptor, size)

/* ---- rename, mkdir, unlink ---- */

#define DEFINE_ON_PATH(name, operation, at, path, parameters, ...) \
    int name parameters { \
        REAL(name); \
        if (path_is_spoilt(operation, at, path)) return -1; \
        return real(__VA_ARGS__); \
    }
DEFINE_ON_PATH(rename, RENAME, AT_FDCWD, to, (const char *from, const char *to), from, to)
DEFINE_ON_PATH(renameat, RENAME, at, to, (int from_at, const char *from, int at, const char *to),
               from_at, from, at, to)
DEFINE_ON_PATH(link, RENAME, AT_FDCWD, to, (const char *from, const char *to), from, to)
DEFINE_ON_PATH(truncate, TRUNCATE, AT_FDCWD, path, (const char *path, off_t size), path, size)
DEFINE_ON_PATH(mkdir, MKDIR, AT_FDCWD, path, (const char *path, mode_t mode), path, mode)
DEFINE_ON_PATH(mkdirat, MKDIR, at, path, (int at, const char *path, mode_t mode), at, path, mode)
DEFINE_ON_PATH(unlink, UNLINK, AT_FDCWD, path, (const char *path), path)
DEFINE_ON_PATH(unlinkat, UNLINK, at, path, (int at, const char *path, int flags), at, path, flags)
DEFINE_ON_PATH(rmdir, UNLINK, AT_FDCWD, path, (const char *path), path)

/* ---- allocations ---- */

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static int allocation_is_spoilt(size_t size) {
    if (!plan.armed || inside || size < plan.smallest) return 0;
    char text[32];
    snprintf(text, sizeof text, "%zu bytes", size);
    return is_spoilt(ALLOCATE, text, 1);
}

void *malloc(size_t size) { return allocation_is_spoilt(size) ? NULL : __libc_malloc(size); }

void *calloc(size_t count, size_t size) {
    return allocation_is_spoilt(count * size) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *before, size_t size) {
    return allocation_is_spoilt(size) ? NULL : __libc_realloc(before, size);
}

void *memalign(size_t alignment, size_t size) {
    return allocation_is_spoilt(size) ? NULL : __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void **found, size_t alignment, size_t size) {
    void *memory = memalign(alignment, size);
    if (!memory) return ENOMEM;
    *found = memory;
    return 0;
}

#define DEFINE_MMAP(name, offset_type) \
    void *name(void *at, size_t size, int protection, int flags, int descriptor, \
               offset_type offset) { \
        REAL(name); \
        if (allocation_is_spoilt(size)) return MAP_FAILED; \
        return real(at, size, protection, flags, descriptor, offset); \
    }
DEFINE_MMAP(mmap, off_t)
DEFINE_MMAP(mmap64, off64_t)
