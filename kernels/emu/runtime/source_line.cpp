// Names the line of an instruction, by binutils' addr2line where that is installed.
#include <link.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "launch.h"

namespace emu {
namespace {

struct Found {
    uintptr_t code;
    uintptr_t offset;
    std::string path;
};

int find_file(dl_phdr_info* info, size_t, void* wanted) {
    Found& found = *static_cast<Found*>(wanted);
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const uintptr_t at = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        if (info->dlpi_phdr[i].p_type != PT_LOAD || found.code < at || found.code - at >= info->dlpi_phdr[i].p_memsz) {
            continue;
        }
        found.offset = found.code - info->dlpi_addr;
        found.path = info->dlpi_name && *info->dlpi_name ? info->dlpi_name : "/proc/" + std::to_string(getpid()) + "/exe";
        return 1;
    }
    return 0;
}

// The lines that addr2line prints, innermost call first; those of the emulator and of device headers tell least.
std::string best_of(FILE* lines) {
    std::string best;
    char line[1024];
    while (std::fgets(line, sizeof line, lines)) {
        std::string text(line, std::strcspn(line, " \n"));
        if (text.empty() || text[0] == '?') continue;
        const bool inner = text.find("/include/") != std::string::npos || text.find("/runtime/") != std::string::npos;
        if (best.empty() || !inner) best = text;
        if (!inner) break;
    }
    return short_name(best);
}

}  // namespace

std::string short_name(const std::string& path) {
    const size_t at = path.rfind("/kernels/");
    return at == std::string::npos ? path : path.substr(at + 1);
}

static std::string look_up(const void* at) {
    // A return address is that of the instruction after the call.
    Found found{reinterpret_cast<uintptr_t>(at) - 1, 0, {}};
    std::string line;
    if (dl_iterate_phdr(find_file, &found)) {
        char command[4352];
        std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", found.path.c_str(),
                      static_cast<size_t>(found.offset));
        if (FILE* lines = popen(command, "r")) {
            line = best_of(lines);
            pclose(lines);
        }
    }
    if (!line.empty()) return line;
    char address[32];
    std::snprintf(address, sizeof address, "0x%zx", static_cast<size_t>(found.offset));
    return std::string("instruction ") + address;
}

std::string source_line(const void* at) {
    static std::mutex guard;
    static std::map<const void*, std::string> known;
    std::lock_guard<std::mutex> lock(guard);
    const auto found = known.find(at);
    return found != known.end() ? found->second : known[at] = look_up(at);
}

}  // namespace emu
