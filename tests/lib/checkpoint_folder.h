/*
 * checkpoint_folder: a folder of a test's own, with a small random checkpoint in it.
 */
#ifndef BATON_TESTS_LIB_CHECKPOINT_FOLDER_H
#define BATON_TESTS_LIB_CHECKPOINT_FOLDER_H

#include "common/model/checkpoint_make.h"

enum { CHECKPOINT_FOLDER_MAX = 64 };

/**
 * Makes /tmp/NAME.XXXXXX and the checkpoint in it.
 * @param folder  out: its path
 * @param opt     NULL: the folder stays empty
 * @return 0; -1: it could not be made
 */
int checkpoint_folder_make(char folder[CHECKPOINT_FOLDER_MAX], const char *name,
                           const struct checkpoint_options *opt);

/** Removes the folder and all in it. @return 0, or not */
int checkpoint_folder_remove(const char *folder);

#endif
