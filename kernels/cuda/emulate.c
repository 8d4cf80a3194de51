#include "kernels/cuda/emulate.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

enum { STACK_BYTES = 64 * 1024 };

struct emulate_dim emulate_block_idx, emulate_thread_idx;

/* The one block that runs. */
static struct {
    ucontext_t scheduler, fiber[EMULATE_THREADS_MAX];
    bool done[EMULATE_THREADS_MAX];
    char *stacks;
    void (*kernel)(const void *args);
    const void *args;
} block;

static void fiber_main(void)
{
    block.kernel(block.args);
    block.done[emulate_thread_idx.x] = true; /* uc_link leads back to the scheduler */
}

void emulate_barrier(void)
{
    swapcontext(&block.fiber[emulate_thread_idx.x], &block.scheduler);
}

/* Runs every thread to its next barrier or its end; returns how many ended. */
static unsigned run_to_barrier(unsigned n_threads)
{
    unsigned n_done = 0;

    for (unsigned i = n_threads; i-- > 0;) {
        emulate_thread_idx.x = i;
        swapcontext(&block.scheduler, &block.fiber[i]);
        n_done += block.done[i];
    }
    return n_done;
}

static void run_block(unsigned n_threads)
{
    unsigned n_done;

    for (unsigned i = 0; i < n_threads; i++) {
        getcontext(&block.fiber[i]);
        block.fiber[i].uc_stack.ss_sp = block.stacks + (size_t)i * STACK_BYTES;
        block.fiber[i].uc_stack.ss_size = STACK_BYTES;
        block.fiber[i].uc_link = &block.scheduler;
        block.done[i] = false;
        makecontext(&block.fiber[i], fiber_main, 0);
    }
    do
        n_done = run_to_barrier(n_threads);
    while (n_done == 0);
    if (n_done != n_threads) {
        fprintf(stderr, "emulate: block %u, %u: %u of %u threads ended while others wait\n",
                emulate_block_idx.x, emulate_block_idx.y, n_done, n_threads);
        abort();
    }
}

void emulate_launch(void (*kernel)(const void *args), const void *args, unsigned grid_x,
                    unsigned grid_y, unsigned n_threads)
{
    if (block.stacks == NULL)
        block.stacks = malloc((size_t)EMULATE_THREADS_MAX * STACK_BYTES);
    if (block.stacks == NULL || n_threads == 0 || n_threads > EMULATE_THREADS_MAX) {
        fprintf(stderr, "emulate: no stacks for a block of %u threads\n", n_threads);
        abort();
    }
    block.kernel = kernel;
    block.args = args;
    for (unsigned y = 0; y < grid_y; y++)
        for (unsigned x = 0; x < grid_x; x++) {
            emulate_block_idx = (struct emulate_dim){x, y};
            run_block(n_threads);
        }
}
