#include "deploy/baton/commands.h"

int cmd_encode(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    return 1;
}

int cmd_parse(int argc, char **argv)
{
    return cmd_encode(argc, argv);
}
