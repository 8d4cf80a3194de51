/*
 * ref: the readable spec of every operation of kernels.h, in plain C.
 */
#ifndef BATON_KERNELS_REF_REF_H
#define BATON_KERNELS_REF_REF_H

#include "kernels/kernels.h"

/** Fills every slot with the reference version; k->dims and k->env are set. Returns 0 or -1 (no memory). */
int kernels_ref_open(struct kernels *k);
void kernels_ref_close(struct kernels *k);

#endif
