#include "kernels/cuda/emulate.h"

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

enum { STACK_BYTES = 64 * 1024, WORDS = 6, WARPS_MAX = EMULATE_THREADS_MAX / EMULATE_WARP };
enum { TILE_ROWS = 16, TILE_COLS = 8, TILE_K_MAX = 32 }; /* of a warp's product */

struct emulate_dim emulate_block_idx, emulate_thread_idx, emulate_block_dim, emulate_grid_dim;
unsigned char emulate_shared[EMULATE_SHARED_MAX] __attribute__((aligned(128)));

enum fiber_state { READY, AT_WARP, AT_BLOCK, DONE };

/* ---- fibers ---- */

/* ucontext costs two system calls a change, which would be most of a test's time. */
#if defined(__x86_64__)
#define OWN_SWITCH 1
#else
#define OWN_SWITCH 0
#endif

/* ASan is told which stack runs. */
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZE_ADDRESS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZE_ADDRESS 1
#endif
#endif
#ifdef SANITIZE_ADDRESS
#include <sanitizer/common_interface_defs.h>
#endif

#if OWN_SWITCH
typedef void *fiber_context; /* its stack pointer; what a call must keep lies on the stack */

void emulate_switch(fiber_context *from, fiber_context to);
__asm__(".text\n"
        ".type emulate_switch, @function\n"
        "emulate_switch:\n"
        "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
        "  mov %rsp, (%rdi)\n"
        "  mov %rsi, %rsp\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n"
        "  ret\n"
        ".size emulate_switch, . - emulate_switch\n");
#else
typedef ucontext_t fiber_context;
#endif

/* The one block that runs. */
static struct {
    fiber_context scheduler, fiber[EMULATE_THREADS_MAX];
#ifdef SANITIZE_ADDRESS
    const void *scheduler_stack; /* as the sanitizer told of it */
    size_t scheduler_stack_bytes;
    void *fake[EMULATE_THREADS_MAX + 1];
#endif
    enum fiber_state state[EMULATE_THREADS_MAX];
    /* What lanes bring to an exchange; a lane is never two exchanges ahead of another. */
    uint32_t words[2][EMULATE_THREADS_MAX][WORDS];
    uint32_t turn[EMULATE_THREADS_MAX]; /* exchanges so far */
    /* What the first lane to come back from an exchange worked out for all of its warp, and of
     * which turn it is. */
    float product[WARPS_MAX][TILE_ROWS][TILE_COLS];
    uint32_t product_turn[WARPS_MAX];
    unsigned n_threads;
    char *stacks;
    void (*kernel)(const void *args);
    const void *args;
} block;

static void change(fiber_context *from, fiber_context *to)
{
#if OWN_SWITCH
    emulate_switch(from, *to);
#else
    swapcontext(from, to);
#endif
}

/* The scheduler lets fiber i run until it waits. */
static void run_fiber(unsigned i)
{
#ifdef SANITIZE_ADDRESS
    __sanitizer_start_switch_fiber(&block.fake[EMULATE_THREADS_MAX],
                                   block.stacks + (size_t)i * STACK_BYTES, STACK_BYTES);
#endif
    change(&block.scheduler, &block.fiber[i]);
#ifdef SANITIZE_ADDRESS
    __sanitizer_finish_switch_fiber(block.fake[EMULATE_THREADS_MAX], NULL, NULL);
#endif
}

/* Fiber i runs, for the first time or again. */
static void arrive(unsigned i)
{
    (void)i;
#ifdef SANITIZE_ADDRESS
    __sanitizer_finish_switch_fiber(block.fake[i], &block.scheduler_stack,
                                    &block.scheduler_stack_bytes);
#endif
}

static void leave(enum fiber_state state)
{
    unsigned i = emulate_thread_idx.x;

    block.state[i] = state;
#ifdef SANITIZE_ADDRESS
    __sanitizer_start_switch_fiber(state == DONE ? NULL : &block.fake[i], block.scheduler_stack,
                                   block.scheduler_stack_bytes);
#endif
    change(&block.fiber[i], &block.scheduler);
    arrive(i);
}

static void fiber_main(void)
{
    arrive(emulate_thread_idx.x);
    block.kernel(block.args);
    leave(DONE);
    abort(); /* nobody runs it again */
}

static void fiber_make(unsigned i)
{
    char *stack = block.stacks + (size_t)i * STACK_BYTES;

    block.state[i] = READY;
    block.turn[i] = 0;
#ifdef SANITIZE_ADDRESS
    block.fake[i] = NULL;
#endif
#if OWN_SWITCH
    void **top = (void **)(void *)(stack + STACK_BYTES); /* aligned to 16 */

    top[-2] = (void *)fiber_main; /* returns there with the stack as after a call */
    block.fiber[i] = top - 2 - 6; /* the six registers that emulate_switch() pops */
    top[-1] = NULL;
#else
    getcontext(&block.fiber[i]);
    block.fiber[i].uc_stack.ss_sp = stack;
    block.fiber[i].uc_stack.ss_size = STACK_BYTES;
    block.fiber[i].uc_link = NULL;
    makecontext(&block.fiber[i], fiber_main, 0);
#endif
}

/* ---- barriers ---- */

void emulate_barrier(void)
{
    leave(AT_BLOCK);
}

void emulate_warp_barrier(void)
{
    leave(AT_WARP);
}

/* Lets go the threads [begin, end) if all of them wait there. */
static bool release(unsigned begin, unsigned end, enum fiber_state at)
{
    for (unsigned i = begin; i < end; i++)
        if (block.state[i] != at)
            return false;
    for (unsigned i = begin; i < end; i++)
        block.state[i] = READY;
    return true;
}

/* Warp w, as far as it comes without the others. @return how many of its threads have ended */
static unsigned run_warp(unsigned w)
{
    unsigned begin = w * EMULATE_WARP, end = begin + EMULATE_WARP, n_done = 0;

    end = end < block.n_threads ? end : block.n_threads;
    do
        for (unsigned i = end; i-- > begin;)
            if (block.state[i] == READY) {
                emulate_thread_idx.x = i;
                run_fiber(i);
                n_done += block.state[i] == DONE;
            }
    while (release(begin, end, AT_WARP));
    return n_done;
}

/* From one barrier of the block to the next the warps run one after the other, in turn from either
 * end: who reads what another warp has not yet written is found out whichever it is. */
static void run_block(void)
{
    unsigned n_done = 0, n_warps = (block.n_threads + EMULATE_WARP - 1) / EMULATE_WARP;
    bool upwards = false;

    for (unsigned i = 0; i < block.n_threads; i++)
        fiber_make(i);
    memset(block.product_turn, 0, n_warps * sizeof(block.product_turn[0]));
    do {
        for (unsigned w = 0; w < n_warps; w++)
            n_done += run_warp(upwards ? w : n_warps - 1 - w);
        upwards = !upwards;
    } while (release(0, block.n_threads, AT_BLOCK));
    if (n_done != block.n_threads) {
        fprintf(stderr, "emulate: block %u, %u, %u: %u of %u threads ended while others wait\n",
                emulate_block_idx.x, emulate_block_idx.y, emulate_block_idx.z, n_done,
                block.n_threads);
        abort();
    }
}

/* ---- exchanges of a warp ---- */

/* Brings n words; returns what all lanes of the warp brought: valid to the lane's next exchange. */
static uint32_t (*exchange(const uint32_t *words, int n))[WORDS]
{
    unsigned i = emulate_thread_idx.x, turn = ++block.turn[i] % 2;

    memcpy(block.words[turn][i], words, (size_t)n * sizeof(*words));
    emulate_warp_barrier();
    return &block.words[turn][i / EMULATE_WARP * EMULATE_WARP];
}

uint32_t emulate_exchange(uint32_t value, unsigned from)
{
    return exchange(&value, 1)[from % EMULATE_WARP][0];
}

uint32_t emulate_ballot(int value)
{
    uint32_t bit = value != 0, bits = 0;
    uint32_t(*all)[WORDS] = exchange(&bit, 1);
    unsigned n = block.n_threads - emulate_thread_idx.x / EMULATE_WARP * EMULATE_WARP;

    for (unsigned l = 0; l < EMULATE_WARP && l < n; l++)
        bits |= all[l][0] << l;
    return bits;
}

/* ---- products of a warp ---- */

/* Where lane l's words of a and b lie in the tile: device.h draws it. A word holds `per_word`
 * neighbours of k, and each half of k has four lanes' words. */
static unsigned k_of(unsigned lane, unsigned half, unsigned per_word)
{
    return (half * 4 + lane % 4) * per_word;
}

struct tile {
    float a[TILE_ROWS][TILE_K_MAX];
    float b[TILE_K_MAX][TILE_COLS];
};

static void multiply(float out[TILE_ROWS][TILE_COLS], const struct tile *t, unsigned n_k)
{
    for (unsigned row = 0; row < TILE_ROWS; row++) {
        float sum[TILE_COLS] = {0};

        for (unsigned k = 0; k < n_k; k++) /* one by one: the emulator's own order */
            for (unsigned n = 0; n < TILE_COLS; n++)
                sum[n] += t->a[row][k] * t->b[k][n];
        memcpy(out[row], sum, sizeof(sum));
    }
}

/* unpack: the numbers in a word. The whole warp's product is made once, by whoever comes first. */
static void product(float d[4], const uint32_t a[4], const uint32_t b[2], unsigned per_word,
                    void (*unpack)(float *out, uint32_t word))
{
    uint32_t mine[WORDS] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    uint32_t(*all)[WORDS] = exchange(mine, WORDS);
    unsigned i = emulate_thread_idx.x, w = i / EMULATE_WARP, lane = i % EMULATE_WARP;
    float x[4];

    if (block.product_turn[w] != block.turn[i]) {
        static struct tile t;

        for (unsigned l = 0; l < EMULATE_WARP; l++)
            for (unsigned half = 0; half < 2; half++) {
                unsigned k = k_of(l, half, per_word);

                unpack(&t.a[l / 4][k], all[l][2 * half]);
                unpack(&t.a[l / 4 + 8][k], all[l][2 * half + 1]);
                unpack(x, all[l][4 + half]);
                for (unsigned j = 0; j < per_word; j++)
                    t.b[k + j][l / 4] = x[j];
            }
        multiply(block.product[w], &t, 8 * per_word);
        block.product_turn[w] = block.turn[i];
    }
    for (unsigned j = 0; j < 4; j++)
        d[j] += block.product[w][lane / 4 + j / 2 * 8][lane % 4 * 2 + j % 2];
}

/* Both halves of a pair of bf16. */
static void unpack_bf16(float *out, uint32_t pair)
{
    uint32_t low = pair << 16, high = pair & 0xFFFF0000u;

    memcpy(&out[0], &low, sizeof(low));
    memcpy(&out[1], &high, sizeof(high));
}

void emulate_mma(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    product(d, a, b, 2, unpack_bf16);
}

static float e4m3(uint32_t code)
{
    uint32_t mag = code & 127;
    float x = mag == 127 ? NAN
              : mag < 8  ? (float)mag * 0x1p-9f
                         : (float)(8 + mag % 8) * exp2f((float)(mag / 8) - 10);

    return code & 128 ? -x : x;
}

static void unpack_e4m3(float *out, uint32_t word)
{
    static float values[256];

    if (values[1] == 0)
        for (unsigned code = 0; code < 256; code++)
            values[code] = e4m3(code);
    for (unsigned byte = 0; byte < 4; byte++)
        out[byte] = values[word >> (8 * byte) & 0xFF];
}

void emulate_mma_e4m3(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    product(d, a, b, 4, unpack_e4m3);
}

void emulate_ldmatrix(uint32_t *out, int n, int transposed, const void *row)
{
    uint64_t at = (uint64_t)(uintptr_t)row;
    uint32_t mine[2] = {(uint32_t)at, (uint32_t)(at >> 32)};
    uint32_t(*all)[WORDS] = exchange(mine, 2);
    unsigned lane = emulate_thread_idx.x % EMULATE_WARP;

    for (unsigned m = 0; m < (unsigned)n; m++) {
        uint16_t pair[2];

        for (unsigned i = 0; i < 2; i++) {
            unsigned r = transposed ? lane % 4 * 2 + i : lane / 4;
            unsigned c = transposed ? lane / 4 : lane % 4 * 2 + i;
            const uint32_t *p = all[m * 8 + r];

            memcpy(&pair[i],
                   (const char *)(uintptr_t)((uint64_t)p[1] << 32 | p[0]) + c * sizeof(pair[i]),
                   sizeof(pair[i]));
        }
        out[m] = (uint32_t)pair[1] << 16 | pair[0];
    }
}

/* ---- launch ---- */

struct call {
    void (*kernel)(const void *args);
    void *args;
    struct emulate_dim grid;
    unsigned n_threads;
    size_t shared_bytes;
};

struct emulate_recording {
    struct call *calls;
    size_t n, cap, bytes;
};

static struct emulate_recording *recording; /* NULL: launches run */
static size_t recorded_bytes;
/* The running block and the shared arrays. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void *must(void *p)
{
    if (p == NULL) {
        fprintf(stderr, "emulate: no memory\n");
        abort();
    }
    return p;
}

static void keep(struct emulate_recording *r, struct call c, size_t args_bytes)
{
    const void *args = c.args;

    if (r->n == r->cap) {
        r->cap = r->cap > 0 ? 2 * r->cap : 64;
        r->calls = must(realloc(r->calls, r->cap * sizeof(*r->calls)));
    }
    r->bytes += sizeof(c) + args_bytes;
    recorded_bytes += sizeof(c) + args_bytes;
    c.args = must(malloc(args_bytes));
    memcpy(c.args, args, args_bytes);
    r->calls[r->n++] = c;
}

static void run(const struct call *c)
{
    pthread_mutex_lock(&mutex);
    if (block.stacks == NULL)
        block.stacks = must(aligned_alloc(64, (size_t)EMULATE_THREADS_MAX * STACK_BYTES));
    block.kernel = c->kernel;
    block.args = c->args;
    block.n_threads = c->n_threads;
    emulate_block_dim = (struct emulate_dim){c->n_threads, 1, 1};
    emulate_grid_dim = c->grid;
    for (unsigned z = 0; z < c->grid.z; z++)
        for (unsigned y = 0; y < c->grid.y; y++)
            for (unsigned x = 0; x < c->grid.x; x++) {
                emulate_block_idx = (struct emulate_dim){x, y, z};
                run_block();
            }
    pthread_mutex_unlock(&mutex);
}

void emulate_launch(void (*kernel)(const void *args), const void *args, size_t args_bytes,
                    struct emulate_dim grid, unsigned n_threads, size_t shared_bytes)
{
    struct call c = {kernel, (void *)(uintptr_t)args, grid, n_threads, shared_bytes};

    if (n_threads == 0 || n_threads > EMULATE_THREADS_MAX || shared_bytes > EMULATE_SHARED_MAX ||
        grid.y > 65535 || grid.z > 65535 || grid.x == 0 || grid.y == 0 || grid.z == 0) {
        fprintf(stderr, "emulate: no GPU takes a grid of %u x %u x %u, %u threads, %zu bytes\n",
                grid.x, grid.y, grid.z, n_threads, shared_bytes);
        abort();
    }
    if (recording != NULL)
        keep(recording, c, args_bytes);
    else
        run(&c);
}

void emulate_record(void)
{
    recording = must(calloc(1, sizeof(*recording)));
}

struct emulate_recording *emulate_recorded(void)
{
    struct emulate_recording *r = recording;

    recording = NULL;
    return r;
}

size_t emulate_recorded_bytes(void)
{
    return recorded_bytes;
}

void emulate_replay(const struct emulate_recording *r)
{
    for (size_t i = 0; i < r->n; i++)
        run(&r->calls[i]);
}

void emulate_forget(struct emulate_recording *r)
{
    for (size_t i = 0; r != NULL && i < r->n; i++)
        free(r->calls[i].args);
    if (r != NULL) {
        recorded_bytes -= r->bytes;
        free(r->calls);
    }
    free(r);
}
