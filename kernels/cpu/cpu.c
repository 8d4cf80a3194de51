#include "kernels/kernels.h"
#include "kernels/ref/ref.h"

#include <stdio.h>

enum cpu_isa kernels_cpu_best(void)
{
    return CPU_ISA_REF;
}

int kernels_open_cpu(struct kernels *k, enum cpu_isa isa, const struct kernel_dims *dims,
                     const struct kernel_env *env)
{
    (void)isa;
    k->dims = *dims;
    k->env = *env;
    k->error[0] = '\0';
    return kernels_ref_open(k);
}

void kernels_close(struct kernels *k)
{
    kernels_ref_close(k);
}
