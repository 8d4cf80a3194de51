#include "common/base/topology.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- lists of CPUs: "0-3,8,10-11" ---- */

/* Marks the CPUs of the list in a file. @return false: there is no such file */
static bool read_list(const char *path, bool in[TOPOLOGY_CPUS])
{
    FILE *f = fopen(path, "re");
    int first, last;
    char next;

    memset(in, 0, TOPOLOGY_CPUS * sizeof(in[0]));
    if (f == NULL)
        return false;
    while (fscanf(f, "%d", &first) == 1) {
        last = first;
        next = (char)fgetc(f);
        if (next == '-') {
            if (fscanf(f, "%d", &last) != 1)
                break;
            next = (char)fgetc(f);
        }
        for (int i = first > 0 ? first : 0; i <= last && i < TOPOLOGY_CPUS; i++)
            in[i] = true;
        if (next != ',')
            break;
    }
    fclose(f);
    return true;
}

/* ---- reading ---- */

static bool may_use(int cpu)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_ISSET(cpu, &set);
}

static int siblings_before(const char *root, int cpu)
{
    bool core[TOPOLOGY_CPUS];
    char path[512];
    int n = 0;

    snprintf(path, sizeof(path), "%s/cpu/cpu%d/topology/thread_siblings_list", root, cpu);
    if (read_list(path, core))
        for (int i = 0; i < cpu; i++)
            n += core[i];
    return n;
}

static void add_cpus(const char *root, bool (*usable)(int cpu), const bool in[TOPOLOGY_CPUS],
                     struct topology *t)
{
    bool any = false;

    for (int i = 0; i < TOPOLOGY_CPUS && t->n_cpus < TOPOLOGY_CPUS; i++) {
        if (!in[i] || !usable(i))
            continue;
        t->cpus[t->n_cpus++] = (struct topology_cpu){i, t->n_nodes, siblings_before(root, i)};
        any = true;
    }
    t->n_nodes += any;
}

static int by_place(const void *a, const void *b)
{
    const struct topology_cpu *x = a, *y = b;

    if (x->node != y->node)
        return x->node - y->node;
    return x->sibling != y->sibling ? x->sibling - y->sibling : x->id - y->id;
}

void topology_read(const char *root, bool (*usable)(int cpu), struct topology *out)
{
    bool in[TOPOLOGY_CPUS];
    char path[512];

    *out = (struct topology){0};
    usable = usable != NULL ? usable : may_use;
    for (int node = 0; node < TOPOLOGY_CPUS && out->n_nodes < TOPOLOGY_NODES; node++) {
        snprintf(path, sizeof(path), "%s/node/node%d/cpulist", root, node);
        if (read_list(path, in)) /* numbers may have holes */
            add_cpus(root, usable, in, out);
        else if (node > 255)
            break;
    }
    if (out->n_cpus == 0) {
        memset(in, 1, sizeof(in));
        add_cpus(root, usable, in, out);
    }
    qsort(out->cpus, (size_t)out->n_cpus, sizeof(out->cpus[0]), by_place);
}

/* ---- placing ---- */

/* The node that gets the next thread: the one with fewest, of those with CPUs left if there are
 * any.
 */
static int next_node(const struct topology *t, const int *n_cpus, const int *share)
{
    int best = 0;
    bool best_room = false;

    for (int i = 0; i < t->n_nodes; i++) {
        bool room = share[i] < n_cpus[i];

        if (i == 0 || (room && !best_room) || (room == best_room && share[i] < share[best])) {
            best = i;
            best_room = room;
        }
    }
    return best;
}

void topology_place(const struct topology *t, int n, int *cpus)
{
    int n_cpus[TOPOLOGY_NODES] = {0}, share[TOPOLOGY_NODES] = {0}, first = 0, at = 0;

    for (int i = 0; i < t->n_cpus; i++)
        n_cpus[t->cpus[i].node]++;
    for (int i = 0; i < n; i++)
        share[next_node(t, n_cpus, share)]++;
    for (int node = 0; node < t->n_nodes; first += n_cpus[node++])
        for (int i = 0; i < share[node]; i++)
            cpus[at++] = first + i % n_cpus[node];
}
