package Serai::Modules;

# The modules of the site's own, those beneath its home: loaded once for all
# scripts, and anew, with the scripts, when a file of theirs has changed.

use v5.36;
use Serai::Symbols;
use Time::HiRes ();

my %files;        # name in %INC → [path, what stat said]
my $known = 0;    # names in %INC that have been looked at
my $home;

sub begin () {
    $home = $ENV{HOME} // '';
    note('.');
}

# note takes up what has been loaded. Relative paths are beneath dir.
sub note ($dir) {
    return if $known == keys %INC;
    for my $name (grep { /\.pm\z/ && !$files{$_} && defined $INC{$_} && !ref $INC{$_} } keys %INC) {
        my $path = $INC{$name} =~ m{\A/} ? $INC{$name} : "$dir/$INC{$name}";
        $files{$name} = [$path, stat_of($path)] if $path !~ m{\A/} || index($path, "$home/") == 0;
    }
    $known = keys %INC;
}

sub stat_of ($path) { return join ' ', (Time::HiRes::stat($path))[0, 1, 7, 9] }

# refresh forgets the scripts and the modules when a module has changed.
sub refresh ($scripts) {
    return if !grep { $_->[1] ne stat_of($_->[0]) } values %files;
    $_->discard for values %$scripts;
    %$scripts = ();
    for my $name (keys %files) {
        delete $INC{$name};
        Serai::Symbols::wipe($name =~ s/\.pm\z//r =~ s{/}{::}gr);
    }
    %files = ();
    $known = 0;
}

# other_than names a module that a text uses and that would be read from
# another file than the loaded one, in a process of its own.
sub other_than ($code, $inc) {
    for my $module ($code =~ /\b(?:use|require|no)\s+([A-Za-z]\w*(?:::\w+)*)/g) {
        my $name = ($module =~ s{::}{/}gr) . '.pm';
        my $loaded = $INC{$name} // next;
        next if ref $loaded;
        my ($dir) = grep { !ref && -e "$_/$name" } @$inc;
        next if !defined $dir || "$dir/$name" eq $loaded;
        return $module if join(' ', (stat "$dir/$name")[0, 1]) ne join(' ', (stat $loaded)[0, 1]);
    }
    return;
}

1;
