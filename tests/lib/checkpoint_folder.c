#include "checkpoint_folder.h"

#include <stdio.h>
#include <stdlib.h>

int checkpoint_folder_make(char folder[CHECKPOINT_FOLDER_MAX], const char *name,
                           const struct checkpoint_options *opt)
{
    struct status st;

    snprintf(folder, CHECKPOINT_FOLDER_MAX, "/tmp/%s.XXXXXX", name);
    if (mkdtemp(folder) == NULL)
        return -1;
    return opt == NULL || checkpoint_make(folder, opt, &st) == ST_OK ? 0 : -1;
}

int checkpoint_folder_remove(const char *folder)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}
