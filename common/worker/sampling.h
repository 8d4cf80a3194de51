/*
 * sampling: a request's sampling parameters, from their message.
 */
#ifndef BATON_COMMON_WORKER_SAMPLING_H
#define BATON_COMMON_WORKER_SAMPLING_H

#include "baton/v1/common.pb-c.h"
#include "common/model/sampler.h"

/** Absent fields (or m NULL) mean the model's defaults: temperature 1, top_p 1, the rest off, seed
 * 0. */
struct sampling_params sampling_from_message(const Baton__V1__Sampling *m);

#endif
