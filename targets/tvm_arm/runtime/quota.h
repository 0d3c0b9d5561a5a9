// How much of the machine a container may use: Linux's control groups give a group so many microseconds of all cores in a period.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>

namespace pocketphi_runtime {

// The quota in a group's folder, in cores' time; without one, infinite. Version 2 says "200000 100000" or "max 100000".
inline double quota_in(const std::string& folder) {
  std::string quota, period;
  std::ifstream both(folder + "/cpu.max");
  if (!(both >> quota >> period)) {
    std::ifstream first(folder + "/cpu.cfs_quota_us"), second(folder + "/cpu.cfs_period_us");
    first >> quota;
    second >> period;
  }
  double granted = std::strtod(quota.c_str(), nullptr), of = std::strtod(period.c_str(), nullptr);
  return granted > 0 && of > 0 ? granted / of : std::numeric_limits<double>::infinity();
}

// The least quota of this process's groups and of those that they lie in. root: "", or where a test keeps such files.
inline double cpu_quota(const std::string& root = "") {
  double least = std::numeric_limits<double>::infinity();
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/a/b" of version 2, "4:cpu,cpuacct:/a/b" of version 1
    size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",", path = line.substr(second + 1);
    if (controllers != ",," && controllers.find(",cpu,") == std::string::npos) continue;
    for (const char* mount : {"", "/unified", "/cpu", "/cpu,cpuacct"}) {
      std::string at = path == "/" ? "" : path;
      for (;; at.resize(at.rfind('/'))) {  // a container sees its own group as the mount itself
        least = std::min(least, quota_in(root + "/sys/fs/cgroup" + mount + at));
        if (at.empty()) break;
      }
    }
  }
  return least;
}

}  // namespace pocketphi_runtime
