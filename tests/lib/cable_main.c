/* cable: a cable with weather between two namespaces, for scripts. See cable.h.
 *
 * usage: cable NS_A IF_A NS_B IF_B [SEED]
 *
 * Prints "laid" once the interfaces are there. Each line of its standard input is a weather, as
 * weather_parse reads it, and is answered with the counts so far; at the input's end the cable is
 * removed. */
#include "cable.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    struct cable c;
    const char *why;
    char line[256];

    if (argc < 5 || argc > 6) {
        fprintf(stderr, "usage: cable NS_A IF_A NS_B IF_B [SEED]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    why = cable_lay(&c, argv[1], argv[2], argv[3], argv[4],
                    argc == 6 ? strtoull(argv[5], NULL, 10) : 1);
    if (why != NULL) {
        fprintf(stderr, "cable: %s\n", why);
        return 77;
    }
    printf("laid\n");
    while (fgets(line, sizeof(line), stdin) != NULL) {
        struct cable_counts n;
        struct weather w;

        line[strcspn(line, "\n")] = '\0';
        if (!weather_parse(line, &w)) {
            fprintf(stderr, "cable: no weather: %s\n", line);
            break;
        }
        cable_set(&c, &w);
        n = cable_count(&c);
        printf("frames %" PRIu64 " bytes %" PRIu64 " lost %" PRIu64 " overflowed %" PRIu64
               " duplicated %" PRIu64 " flipped %" PRIu64 " overtook %" PRIu64 "\n",
               n.frames, n.bytes, n.lost, n.overflowed, n.duplicated, n.flipped, n.overtook);
    }
    cable_remove(&c);
    return 0;
}
