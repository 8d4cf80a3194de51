/*
 * arena: the memory that packed weights live in.
 *
 * In huge pages where the system has them: a GEMV that streams gigabytes would otherwise spend its
 * time on page walks. A checkpoint has tens of thousands of tensors and a process 65,530 mappings,
 * so weights are cut from larger chunks.
 */
#include "kernels/cpu/cpu.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 };

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* Memory whose address is a multiple of HUGE_PAGE, or NULL. bytes: a multiple of 4096. */
static void *map_huge(size_t bytes)
{
    uint8_t *p = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    size_t before = (size_t)(-(uintptr_t)p % HUGE_PAGE);

    if (before > 0)
        munmap(p, before);
    munmap(p + before + bytes, HUGE_PAGE - before);
    madvise(p + before, bytes, MADV_HUGEPAGE);
    return p + before;
}

enum { CHUNK = 64 << 20 };

/* A chunk is given back when the last weight in it is. */
struct chunk {
    uint8_t *base;
    size_t bytes, used;
    int n_live;
};

struct cpu_arena {
    struct chunk *chunks; /* [n]; the last one is filled */
    int n, cap;
};

struct cpu_arena *cpu_arena_new(void)
{
    return calloc(1, sizeof(struct cpu_arena));
}

void cpu_arena_free(struct cpu_arena *a)
{
    if (a == NULL)
        return;
    for (int i = 0; i < a->n; i++)
        munmap(a->chunks[i].base, a->chunks[i].bytes);
    free(a->chunks);
    free(a);
}

static struct chunk *add_chunk(struct cpu_arena *a, size_t bytes)
{
    if (a->n == a->cap) {
        int cap = a->cap > 0 ? 2 * a->cap : 16;
        struct chunk *grown = realloc(a->chunks, (size_t)cap * sizeof(*grown));

        if (grown == NULL)
            return NULL;
        a->chunks = grown;
        a->cap = cap;
    }
    uint8_t *base = map_huge(bytes);

    if (base == NULL)
        return NULL;
    a->chunks[a->n] = (struct chunk){.base = base, .bytes = bytes};
    return &a->chunks[a->n++];
}

void *cpu_arena_take(struct cpu_arena *a, size_t bytes)
{
    struct chunk *c = a->n > 0 ? &a->chunks[a->n - 1] : NULL;

    bytes = round_up(bytes, 64);
    if (c == NULL || c->bytes - c->used < bytes)
        c = add_chunk(a, bytes > CHUNK ? round_up(bytes, HUGE_PAGE) : CHUNK);
    if (c == NULL)
        return NULL;
    void *p = c->base + c->used;

    c->used += bytes;
    c->n_live++;
    return p;
}

void cpu_arena_give(struct cpu_arena *a, void *p)
{
    for (int i = a->n - 1; i >= 0; i--) {
        struct chunk *c = &a->chunks[i];

        if ((uint8_t *)p < c->base || (uint8_t *)p >= c->base + c->bytes)
            continue;
        if (--c->n_live == 0) {
            munmap(c->base, c->bytes);
            *c = a->chunks[--a->n];
        }
        return;
    }
}
