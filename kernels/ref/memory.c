/* Device memory of host backends: host memory. */
#include <sys/mman.h>

#include "kernels/ref/ref.h"

/* In front of each allocation: its mapped length, in a page of its own. */
enum { HEAD = 4096 };

struct dev_ptr ref_dev_alloc(struct kernels *k, size_t bytes)
{
    size_t total = (bytes + 2 * HEAD - 1) / HEAD * HEAD;
    char *p = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    (void)k;
    if (p == MAP_FAILED)
        return (struct dev_ptr){0};
    madvise(p, total, MADV_HUGEPAGE);
    memcpy(p, &total, sizeof(total));
    return (struct dev_ptr){(uint64_t)(uintptr_t)(p + HEAD)};
}

void ref_dev_free(struct kernels *k, struct dev_ptr p)
{
    size_t total;
    char *base;

    (void)k;
    if (dev_is_null(p))
        return;
    base = (char *)ref_ptr(p) - HEAD;
    memcpy(&total, base, sizeof(total));
    munmap(base, total);
}

void ref_dev_write(struct kernels *k, struct dev_ptr dst, const void *src, size_t bytes)
{
    (void)k;
    memcpy(ref_ptr(dst), src, bytes);
}

int ref_dev_read(struct kernels *k, void *dst, struct dev_ptr src, size_t bytes)
{
    (void)k;
    memcpy(dst, ref_ptr(src), bytes);
    return 0;
}

void ref_dev_copy(struct kernels *k, struct dev_ptr dst, struct dev_ptr src, size_t bytes)
{
    (void)k;
    memcpy(ref_ptr(dst), ref_ptr(src), bytes);
}

int ref_sync(struct kernels *k)
{
    (void)k;
    return 0;
}

void *ref_dev_host(struct kernels *k, struct dev_ptr p)
{
    (void)k;
    return ref_ptr(p);
}
