/* Runs a fuzz target over the files of its corpus: what the normal test run does with it. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(const char *dir, const char *name)
{
    char path[4096];
    uint8_t *data = malloc(1 << 20);
    size_t n;
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "rb");
    if (f == NULL || data == NULL) {
        fprintf(stderr, "cannot read %s\n", path);
        free(data);
        return 1;
    }
    n = fread(data, 1, 1 << 20, f);
    fclose(f);
    data = realloc(data, n + 1); /* so that the sanitizers see a read past the end */
    LLVMFuzzerTestOneInput(data, n);
    free(data);
    return 0;
}

int main(int argc, char **argv)
{
    int n = 0, rc = 0;

    for (int i = 1; i < argc; i++) {
        DIR *d = opendir(argv[i]);

        if (d == NULL) {
            fprintf(stderr, "no folder %s\n", argv[i]);
            return 1;
        }
        for (struct dirent *e; (e = readdir(d)) != NULL;)
            if (e->d_name[0] != '.') {
                rc |= replay(argv[i], e->d_name);
                n++;
            }
        closedir(d);
    }
    printf("replayed %d inputs\n", n);
    return rc != 0 || n == 0;
}
