/*
 * tensor_names: other spellings of V4's tensor names (tests/oracle/CHECKPOINT.md, "Other names that
 * mean the same"), translated to the released ones.
 */
#ifndef BATON_COMMON_MODEL_TENSOR_NAMES_H
#define BATON_COMMON_MODEL_TENSOR_NAMES_H

/** The released spelling of a name; malloc, the caller frees. */
char *tensor_name_canonical(const char *name);

#endif
